"""Numbers of the system calls and of the architecture, from the headers of the build.

Calls differ from one architecture to the next, in number and in which there are. `setup.py` takes the names from the C
library's headers; what a process may call is declared beside the code that does (`host/declared_calls`).
"""

from libc.stddef cimport size_t

cdef extern from * nogil:
    """
    #include <stddef.h>
    #include <sys/syscall.h>
    #include <linux/audit.h>
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
    #define BUCATINI_ARCH AUDIT_ARCH_S390X
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

ARCHITECTURE = BUCATINI_ARCH  # AUDIT_ARCH_*, as struct seccomp_data has it


def numbers():
    """Return name -> number of every system call that the build's headers know."""
    cdef size_t i
    return {bucatini_calls[i].name.decode(): bucatini_calls[i].number for i in range(BUCATINI_CALLS)}
