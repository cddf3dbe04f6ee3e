ARCHITECTURE: int
FIONBIO: int
SIOCINQ: int
SIOCGIFINDEX: int
F_SETPIPE_SZ: int
PROT_EXEC: int

def numbers() -> dict[str, int]: ...
