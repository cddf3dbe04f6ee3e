"""Numbers of the system calls, of some of their arguments and of the architecture, from the headers of the build.

Calls differ from one architecture to the next, in number and in which there are, and so do the commands of ioctl(2).
`setup.py` takes the names of the calls from the C library's headers; what a process may call is declared beside the
code that does (`host/declared_calls`).
"""

from libc.stddef cimport size_t

cdef extern from * nogil:
    """
    #include <stddef.h>
    #include <fcntl.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <linux/audit.h>
    #include <linux/sockios.h>
    struct bucatini_call { const char *name; long number; };
    static const struct bucatini_call bucatini_calls[] = {
    #define CALL(name) {#name, SYS_##name},
    #include "syscall_names.h"
    #undef CALL
    };
    #define BUCATINI_CALLS (sizeof(bucatini_calls) / sizeof(bucatini_calls[0]))
    #if defined(__x86_64__)
    #define BUCATINI_ARCH AUDIT_ARCH_X86_64
    #elif defined(__aarch64__)
    #define BUCATINI_ARCH AUDIT_ARCH_AARCH64
    #elif defined(__riscv) && __riscv_xlen == 64
    #define BUCATINI_ARCH AUDIT_ARCH_RISCV64
    #elif defined(__powerpc64__) && defined(__LITTLE_ENDIAN__)
    #define BUCATINI_ARCH AUDIT_ARCH_PPC64LE
    #elif defined(__s390x__)
    #error "no filter could forbid executable pages here: mmap(2) takes its arguments in memory"
    #else
    #error "seccomp's name of this architecture is missing here: see linux/audit.h"
    #endif
    """
    cdef struct bucatini_call:
        const char *name
        long number
    bucatini_call bucatini_calls[]
    size_t BUCATINI_CALLS
    unsigned int BUCATINI_ARCH
    unsigned int command_nonblocking "FIONBIO"
    unsigned int command_queued "SIOCINQ"
    unsigned int command_ifindex "SIOCGIFINDEX"
    unsigned int command_pipe_size "F_SETPIPE_SZ"
    unsigned int executable "PROT_EXEC"

ARCHITECTURE = BUCATINI_ARCH  # AUDIT_ARCH_*, as struct seccomp_data has it
FIONBIO = command_nonblocking  # ioctl_tty(2)
SIOCINQ = command_queued
SIOCGIFINDEX = command_ifindex  # netdevice(7)
F_SETPIPE_SZ = command_pipe_size  # fcntl(2)
PROT_EXEC = executable  # mmap(2)


def numbers():
    """Return name -> number of every system call that the build's headers know."""
    cdef size_t i
    return {bucatini_calls[i].name.decode(): bucatini_calls[i].number for i in range(BUCATINI_CALLS)}
