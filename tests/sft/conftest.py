from light_runs import light  # noqa: F401  # for all tests of this folder
