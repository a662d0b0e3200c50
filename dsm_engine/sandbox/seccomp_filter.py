"""The system-call filter of one program: no new processes, no signals to others, no sockets.

Runs inside the sandbox, standard library only. The namespaces keep a program from the machine;
this filter keeps it from its neighbours and from the driver: what a program cannot start, it
cannot leave behind.
"""

import ctypes
import errno
import platform
import struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NR_OFFSET, _ARCH_OFFSET, _ARG0_OFFSET = 0, 4, 16  # struct seccomp_data, little endian
_CLONE_THREAD = 0x00010000
_X32_SYSCALLS = 0x40000000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2

# name: number on x86_64, number on aarch64; None where it does not exist.
_DENIED = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # Memory that no rlimit of the process counts.
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_ON_ITSELF_ONLY = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
_libc = ctypes.CDLL(None, use_errno=True)  # opened once: every program's process installs a filter
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def install(pid: int) -> None:
    """Puts the filter on the calling process, whose id is `pid`. Raises OSError where it cannot."""
    instructions = _filter(platform.machine(), pid)
    program = _FilterProgram(len(instructions) // 8, instructions)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if _libc.prctl(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl: {errno.errorcode.get(number, number)}")


def _filter(machine: str, pid: int) -> bytes:
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system-call filter for {machine}")
    column, architecture = _ARCHITECTURES[machine]
    eperm, enosys = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    steps: list[tuple[int, int, int, int]] = [  # code, skip if true, skip if false, operand
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR_OFFSET),
        (_AT_LEAST, 0, 1, _X32_SYSCALLS),
        (_RETURN, 0, 0, eperm),
        # ENOSYS makes libc fall back to clone, whose flags a filter can see.
        (_EQUAL, 0, 1, _CLONE3[column]),
        (_RETURN, 0, 0, enosys),
    ]
    for numbers in _DENIED.values():
        number = numbers[column]
        if number is not None:
            steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, eperm)]
    steps += [
        (_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _ARG0_OFFSET),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, eperm),
    ]
    for name, numbers in _ON_ITSELF_ONLY.items():
        itself = pid if name != "prlimit64" else 0
        steps += [
            (_EQUAL, 0, 4, numbers[column]),
            (_LOAD, 0, 0, _ARG0_OFFSET),
            (_EQUAL, 0, 1, itself),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, eperm),
        ]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *step) for step in steps)
