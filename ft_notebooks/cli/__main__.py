"`python -m ft_notebooks.cli`, and what `accelerate launch -m` and `torchrun -m` start"

from ft_notebooks.cli.commands import main

main()
