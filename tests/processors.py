"Another processor than this one, as the environment variables of its libraries make it"

import os


def without_vnni() -> None:
    """Where `ONEDNN_MAX_CPU_ISA` leaves no VNNI, `torch._int_mm` computes as it does on a processor without.

    It asks the processor itself and not oneDNN, whose kernel for 8 bits overflows without VNNI; a processor that has
    none gets torch's own, which is exact.
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA") not in ("AVX2", "AVX512_CORE"):
        return
    import torch

    int_mm = torch._int_mm

    def exact(*args, **kwargs):
        with torch.backends.mkldnn.flags(enabled=False):
            return int_mm(*args, **kwargs)

    torch._int_mm = exact
