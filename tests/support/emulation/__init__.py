"""CPUs other than this machine's, emulated by qemu: x86 without VNNI, and ARM.

Fetched once, without root, below ``.cache/emulation`` (`fixtures`). Where that fails the tests
fail; with ``LIGHTEN_TEST_WITHOUT_QEMU=1`` they are skipped instead.

Where this machine's CPU has no VNNI itself, what is for x86 runs on it. ``LIGHTEN_TEST_CPU=native``
asks for that, and fails on another CPU; ``LIGHTEN_TEST_CPU=qemu`` emulates on every machine.
"""
