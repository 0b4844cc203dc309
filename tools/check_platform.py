"""Say what is missing before anything is downloaded. Runs on the system's Python, any version."""

import platform
import sys

CLIENT = "The client installs anywhere: pip install ."
PROBLEMS = []

if sys.version_info[:2] != (3, 11):
    PROBLEMS.append(
        "Python 3.11 is needed, this is %s (%s). Set PYTHON, for example: make PYTHON=python3.11"
        % (platform.python_version(), sys.executable)
    )
else:
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        PROBLEMS.append("This Python makes no environments: install the package python3.11-venv.")

if platform.system() != "Linux" or platform.machine() != "x86_64":
    PROBLEMS.append(
        "The worker needs Linux on x86_64, because aimet-onnx has wheels for nothing else; this is "
        "%s on %s. %s" % (platform.system(), platform.machine(), CLIENT)
    )
else:
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 34):
        PROBLEMS.append(
            "The worker needs glibc 2.34 or newer, because aimet-onnx's wheels do; this is %s. %s"
            % ("%s %s" % (libc, version) if libc else "another libc", CLIENT)
        )

if PROBLEMS:
    sys.stderr.write("Lighten cannot be set up here:\n")
    for problem in PROBLEMS:
        sys.stderr.write("  - %s\n" % problem)
    sys.exit(1)
