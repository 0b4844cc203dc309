"""x86 whose kernels for INT8 weights saturate, as those without VNNI do."""

import os
from pathlib import Path

from tests.support.emulation.cpu import X86_WITHOUT_VNNI, Cpu
from tests.support.emulation.debian import Unavailable
from tests.support.emulation.qemu import qemu

VARIABLE = "LIGHTEN_TEST_CPU"


def x86_without_vnni(cache: Path) -> Cpu:
    """Return this machine's CPU where it saturates, else one that qemu emulates.

    ``LIGHTEN_TEST_CPU`` forces one of them: ``native`` or ``qemu``.

    Raises:
        Unavailable: neither can be had.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "native", "qemu"):
        raise Unavailable(f"{VARIABLE} is native or qemu, not {wanted}")
    native = Cpu("this machine's CPU", X86_WITHOUT_VNNI)
    if wanted != "qemu" and native.is_there():
        return native
    if wanted == "native":
        raise Unavailable(f"{VARIABLE}=native, but the kernels of this machine's CPU are exact")
    # It has AVX2, and neither AVX-512, which OpenBLAS may have been told to use, nor VNNI.
    options = ("-cpu", "max", "-U", "OPENBLAS_CORETYPE")
    return Cpu("x86 by qemu", X86_WITHOUT_VNNI, (str(qemu(cache, "qemu-x86_64")), *options))
