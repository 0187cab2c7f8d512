"""Compiles every kernel for every architecture, with neither a GPU nor CUDA installed: NVRTC is a library of its own.

    pip install nvidia-cuda-nvrtc==13.0.88
    check.py [--arch sm_90] [--resources] [--out FOLDER]

Prints each file and architecture, and with --resources the registers, shared memory and spills of each kernel.
"""

import argparse
import ctypes
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ARCHITECTURES = ["sm_80", "sm_89", "sm_90"]


def nvrtc():
    for folder in sys.path:
        for path in sorted(Path(folder or ".").glob("nvidia/*/lib/libnvrtc.so.*")):
            # It looks for this one where the loader does; there it is once it is loaded.
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
            return ctypes.CDLL(str(path))
    try:
        return ctypes.CDLL("libnvrtc.so.13")
    except OSError:
        sys.exit("check.py: there is no libnvrtc: pip install nvidia-cuda-nvrtc==13.0.88")


def compiled(library, path, options):
    """The program's log and its cubin, or none if it does not compile."""
    program = ctypes.c_void_p()
    source, header = path.read_bytes(), (FOLDER / "device.cuh").read_bytes()
    headers, names = (ctypes.c_char_p * 1)(header), (ctypes.c_char_p * 1)(b"device.cuh")
    library.nvrtcCreateProgram(ctypes.byref(program), source, path.name.encode(), 1, headers, names)
    words = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = library.nvrtcCompileProgram(program, len(options), words)
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    cubin = None
    if status == 0:
        library.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        library.nvrtcGetCUBIN(program, cubin)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return log.value.decode(), cubin and cubin.raw


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", action="append", help="one architecture; may be given again (all of them)")
    parser.add_argument("--resources", action="store_true", help="print registers, shared memory and spills")
    parser.add_argument("--out", type=Path, help="keep the machine code here")
    arguments = parser.parse_args()
    library, n_failed = nvrtc(), 0
    for path in sorted(FOLDER.glob("*.cu")):
        for architecture in arguments.arch or ARCHITECTURES:
            options = [f"--gpu-architecture={architecture}", "--std=c++17"]
            options += ["--ptxas-options=-v"] if arguments.resources else []
            log, cubin = compiled(library, path, options)
            print(f"{'ok' if cubin else 'FAILED':8}{path.name} {architecture}", flush=True)
            if not cubin or arguments.resources:
                print(log)
            n_failed += not cubin
            if cubin and arguments.out:
                arguments.out.mkdir(parents=True, exist_ok=True)
                (arguments.out / f"{path.stem}.{architecture}.cubin").write_bytes(cubin)
    sys.exit(f"check.py: {n_failed} failed" if n_failed else 0)


if __name__ == "__main__":
    main()
