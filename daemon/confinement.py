"""Takes files, network and other processes from a process before a library in C reads untrusted bytes in it.

A text or a recording may overflow a buffer of such a library, and then control the process. Landlock
(landlock(7)) leaves it its libraries to read and the folders that are named; seccomp (seccomp(2)) takes the network,
other programs and other processes. Both need no privilege, hold for good, and are inherited. Where the kernel has
neither, the process runs as before.

By ctypes, because this runs in the interpreter of the workers, which needs no more packages than before: three system
calls and one filter. The packages for Landlock are months old, and those for seccomp need a library of the system.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION = 1 << 0
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_REG = 1 << 5, 1 << 8
#: By the ABI that brought them: rights to files, to TCP (bind, connect), and scopes (abstract sockets, signals).
_ALL_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_ALL_TCP, _ALL_SCOPES = {4: 0b11}, {6: 0b11}

_READ = _EXECUTE | _READ_FILE | _READ_DIR
#: To make, name and remove files, but not to read those of others.
_MAKE = _READ_DIR | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG
#: Rights that a rule for a file, not a folder, can have.
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE

#: Read by an interpreter and its packages beside their own folders.
_SYSTEM = (
    *("/usr", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu"),
)

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_FLAG_TSYNC = 1
_ALLOW, _REFUSE_EPERM = 0x7FFF_0000, 0x0005_0001
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
#: Offsets in struct seccomp_data.
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16


class _Machine:
    """The numbers of system calls on one kind of machine: of seccomp, those refused, and those of one's own alone."""

    def __init__(self, arch: int, seccomp: int, refused: str, own: str, alien: int = 0) -> None:
        self.arch, self.seccomp, self.alien = arch, seccomp, alien
        # The same everywhere: pidfd_send_signal io_uring_setup pidfd_open pidfd_getfd process_madvise fchmodat2
        # setxattrat
        self.refused = [*map(int, refused.split()), 424, 425, 434, 438, 440, 452, 463]
        #: Their first argument is a process: this one, or 0.
        self.own = [int(number) for number in own.split()]


_MACHINES = {
    "x86_64": _Machine(
        0xC000_003E,
        317,
        # socket connect accept bind listen accept4 | execve execveat ptrace process_vm_readv process_vm_writev kcmp
        "41 42 43 49 50 288 59 322 101 310 311 312 "
        # kill tkill rt_sigqueueinfo rt_tgsigqueueinfo | bpf perf_event_open userfaultfd keyctl add_key request_key
        "62 200 129 297 321 298 323 250 248 249 "
        # chmod fchmod fchmodat chown fchown lchown fchownat setxattr lsetxattr fsetxattr (Landlock permits them)
        "90 91 268 92 93 94 260 188 189 190 "
        # unshare setns mount open_by_handle_at kexec_load init_module finit_module
        "272 308 165 304 246 175 313",
        # tgkill prlimit64
        "234 302",
        # The calls of the x32 ABI.
        alien=0x4000_0000,
    ),
    "aarch64": _Machine(
        0xC000_00B7,
        277,
        "198 203 202 200 201 242 221 281 117 270 271 272 129 130 138 240 280 241 282 219 217 218 "
        "52 53 55 54 5 6 7 97 268 40 265 104 105 273",
        "131 261",
    ),
}

_libc = ctypes.CDLL(None, use_errno=True)


class Confinement:
    """The restrictions of this process; ``lacking`` names those that the kernel does not have, and why."""

    def __init__(self, lacking: str, folders: Iterable[Path]) -> None:
        self.lacking = lacking
        #: A right is bound to a folder itself, not to its name.
        self._folders = {} if lacking else {folder: _identity(folder) for folder in folders}

    def has_lost(self, folder: Path) -> bool:
        """Whether ``folder``, in which this process may make files, is gone now, or another one."""
        return folder in self._folders and self._folders[folder] != _identity(folder)


def confine_files(write: Iterable[Path] = (), read_write: Iterable[Path] = ()) -> Confinement:
    """Permit this thread, and the threads that it starts, no files but these: call it before the first one.

    The interpreter and its packages can still be read.

    Args:
        write: folders in which files may be made, but none of others read.
        read_write: folders in which files may be made and read.
    """
    write, read_write = list(write), list(read_write)
    abi = landlock_abi()
    if not abi:
        return Confinement("files: this kernel has no Landlock, or it is off", [])
    handled = _by_abi(_ALL_FILES, abi)
    try:
        attributes = struct.pack("=QQQ", handled, _by_abi(_ALL_TCP, abi), _by_abi(_ALL_SCOPES, abi))
        ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
        try:
            for paths, access in (
                (map(Path, _SYSTEM), _READ),
                (_of_interpreter(), _READ),
                ([Path("/dev/null")], _READ_FILE | _WRITE_FILE),
                (write, _MAKE),
                (read_write, _MAKE | _READ_FILE),
            ):
                for path in paths:
                    _permit(ruleset, path, access)
            no_new_privileges()
            _call(_RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        return Confinement(f"files: {error.strerror}", [])
    return Confinement("", [*write, *read_write])


def confine_calls() -> str:
    """Refuse all threads of this process the calls that they need no more. Returns why it can't, or ``""``.

    From then on it can make no socket, start no program, and reach no other process.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None or sys.maxsize < 1 << 32:
        return f"system calls: there is no filter for this machine ({platform.machine()})"
    program = _filter(machine)
    code = ctypes.create_string_buffer(b"".join(program))
    head = struct.pack("@HP", len(program), ctypes.addressof(code))
    try:
        no_new_privileges()
        thread = _call(machine.seccomp, _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.create_string_buffer(head))
    except OSError as error:
        return f"system calls: {error.strerror}"
    return f"system calls: thread {thread} has a filter of its own" if thread else ""


def landlock_abi() -> int:
    """The version of Landlock in this kernel; 0 without any."""
    with contextlib.suppress(OSError):
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _RULESET_VERSION)
    return 0


def has_filters() -> bool:
    """Whether this kernel, and this machine's table above, have a filter of system calls."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return False
    with contextlib.suppress(OSError):
        return _call(machine.seccomp, _GET_ACTION_AVAIL, 0, ctypes.byref(ctypes.c_uint32(_REFUSE_EPERM & ~0xFFFF))) == 0
    return False


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def no_new_privileges() -> None:
    """Start no program with more privileges than this process has. Raises OSError."""
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _by_abi(rights: dict[int, int], abi: int) -> int:
    return max((mask for since, mask in rights.items() if since <= abi), default=0)


def _permit(ruleset: int, path: Path, access: int) -> None:
    """Add a rule for a file or a folder; one that is not there needs none. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        mask = access if path.is_dir() else access & _OF_FILES
        _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", mask, descriptor), 0)
    finally:
        os.close(descriptor)


def _of_interpreter() -> set[Path]:
    """The folders of the interpreter and its packages, and those of loaded modules, which may be links to elsewhere."""
    found = {Path(sys.prefix), Path(sys.base_prefix), Path(os.__file__).parent}
    listed = (*sys.path, *os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    found |= {Path(entry).absolute() for entry in listed if entry}
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    # A file or its folder may be the link. There are hundreds of files, in few folders.
    folders = {os.path.dirname(place) for file in files if file for place in (file, _target(file))}  # noqa: PTH120
    found |= {Path(folder).resolve() for folder in folders if folder}
    # `python -m` puts the working folder into the path.
    return found - {Path("/")}


def _target(file: str) -> str:
    try:
        return os.path.join(os.path.dirname(file), os.readlink(file))  # noqa: PTH115, PTH118, PTH120 (pathlib is slow)
    except OSError:
        return file


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _filter(machine: _Machine) -> list[bytes]:
    """The instructions of the filter (struct sock_filter)."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    own = len(machine.own)
    # Behind the comparisons: permit, refuse, and the look at the first argument.
    tests = len(machine.refused) + own
    program = [step(_LOAD, _ARCH), step(_EQUAL, machine.arch, 1, 0), step(_RETURN, _REFUSE_EPERM), step(_LOAD, _NUMBER)]
    if machine.alien:
        program.append(step(_AT_LEAST, machine.alien, tests + 1, 0))
    program += [step(_EQUAL, number, tests - i, 0) for i, number in enumerate(machine.refused)]
    program += [step(_EQUAL, number, own - i + 1, 0) for i, number in enumerate(machine.own)]
    program += [step(_RETURN, _ALLOW), step(_RETURN, _REFUSE_EPERM), step(_LOAD, _FIRST_ARGUMENT)]
    program += [step(_EQUAL, os.getpid(), 1, 0), step(_EQUAL, 0, 0, 1), step(_RETURN, _ALLOW)]
    return [*program, step(_RETURN, _REFUSE_EPERM)]
