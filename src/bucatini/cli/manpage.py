"""The manual pages, rendered from the option table: `python -m bucatini.cli.manpage pasta|passt` writes roff (man(7)).

What belongs to no single option is here: description, port specifications, exit status, examples.
"""

from __future__ import annotations

import re
import sys

from bucatini import __version__
from bucatini.cli.options import ADDS_UP, GROUPS, NAMES, PASTA, PER_VERSION, Option
from bucatini.cli.usage import about

PASTA_HEAD = r""".TH PASTA 1 "" "Bucatini {version}" "User Commands"
.SH NAME
pasta \- rootless networking for namespaces
.SH SYNOPSIS
.B pasta
[\fIOPTION\fR]... [\fICOMMAND\fR [\fIARGUMENT\fR]...]
.br
.B pasta
[\fIOPTION\fR]... \fIPID\fR
.br
.B pasta
[\fIOPTION\fR]... \fB\-\-netns\fR \fIPATH\fR|\fINAME\fR
.SH DESCRIPTION
.B pasta
connects a network namespace to the network without any privilege. It makes a tap interface in the namespace and
translates between its Ethernet frames and ordinary TCP, UDP and ping sockets of the host.
.PP
Given a command, or nothing (then it is the user's shell), it makes new user, network, mount, IPC, UTS and PID
namespaces, runs the command there as root of them, and exits with its status. Given a process number or
.BR \-\-netns ,
it joins the namespaces that are there and goes to the background when everything is ready; with
.B \-\-foreground
it stays. It ends when the command ends, or when the network namespace is gone.
.PP
The namespace has the host's address; connections from it come from the host's address too. Traffic to the gateway's
address reaches the host's loopback, unless
.B \-\-no\-map\-gw
is given.
"""

PASST_HEAD = r""".TH PASST 1 "" "Bucatini {version}" "User Commands"
.SH NAME
passt \- rootless networking for virtual machines
.SH SYNOPSIS
.B passt
[\fIOPTION\fR]...
.SH DESCRIPTION
.B passt
connects a virtual machine to the network without any privilege. QEMU hands it the guest's Ethernet frames over a UNIX
socket; it translates between them and ordinary TCP, UDP and ping sockets of the host.
.PP
It goes to the background when the socket can be connected to; with
.B \-\-foreground
it stays. A client may disconnect and come back, or another one come after it; connections go on. With
.B \-\-one\-off
it ends with the first one.
.PP
The guest gets the host's address, routes and name servers by DHCP, DHCPv6 and router advertisements; connections from
it come from the host's address too. Traffic to the gateway's address reaches the host's loopback, unless
.B \-\-no\-map\-gw
is given.
"""

OPTIONS = r""".SH OPTIONS
Options end at the first operand, or at
.BR \-\- .
Long options may be abbreviated as long as they stay unambiguous. An option may be given again; then the last one
counts, unless it says otherwise below. So does the last of options that take each other back. What is said of an IP
version that is off has no effect; ports at an address of it are refused.
"""

PORTS = r""".SH "PORT SPECIFICATIONS"
The argument of
.B \-\-tcp\-ports
and
.B \-\-udp\-ports
is one of
.TP
.B none
No port. Takes back the specifications before it.
.TP
.IR ports ", " address / ports ", %" interface / ports ", " address % interface / ports
What arrives at these ports of the host, at the address and through the interface, if they are given. An IPv6 address
may stand in brackets. Without an address it is any address of both IP versions.
.PP
Ports are a list, separated by commas, of
.TP
.IR first [\- last ]
A port or a range of ports, forwarded to the same ports.
.TP
.IR first [\- last ]: to [\- tolast ]
Forwarded to the ports from
.I to
on. Two ranges must be of one length.
.TP
.IR first [\- last ]: toaddress "\fR[\fP/" to "\fR[\-\fP" tolast "\fR]]\fP"
Forwarded to another address behind the namespace's interface, and only from its IP version. Put an IPv6 address in
brackets.
.TP
.BR all [: \fItoaddress\fR ]
Every port but those that the kernel hands out itself (net.ipv4.ip_local_port_range).
.TP
.BR ~ \fIfirst\fR[\-\fIlast\fR]
Not these, whatever else the list says. A list of nothing but exclusions means all other ports.
@AUTO@.PP
Specifications add up, but must not send one port of one address to different places. A port that is named must be
free on the host. Of
.B all
and of exclusions those that are not are left out, unless none is free; ports that are named elsewhere are left to
them.
.PP
Without any
.B \-\-udp\-ports
the UDP ports of the same numbers as all TCP ports are forwarded, untranslated, as far as they are free;
.B \-\-udp\-ports none
switches that off.
"""

AUTO = r""".TP
.B auto
Of the ports that the list names, those to which something is bound on the other side, which is looked for every
second; none of them has to be free. Without any, of all but those that the kernel hands out itself. That is the
default: a sandbox should say
.B none
for
.BR \-T " and " \-U ,
together with
.BR \-\-no\-map\-gw .
"""

PASTA_TAIL = r""".SH "EXIT STATUS"
.TP
.B 0
Connected, and in the background; or ended by SIGTERM, SIGQUIT, SIGINT or the end of the namespace (with a command,
SIGINT is for that alone, and on a terminal SIGQUIT too); or
.BR \-\-help " or " \-\-version .
.TP
.B 1
Something was wrong: one line on standard error says what.
.TP
.I status
That of the command, where one was given; 128+\fIN\fR if signal \fIN\fR ended it.
.SH EXAMPLES
.TP
.B pasta \-\-config\-net
A shell in a namespace that reaches everything the host reaches.
.TP
.B pasta \-\-config\-net \-t 8080:80 \-\- busybox httpd \-f \-p 80
A web server in a namespace, at the host's port 8080.
.TP
.B pasta \-\-config\-net \-t 127.0.0.1/2222:22 \-u none \-\-no\-map\-gw 1234
Connects the namespace of process 1234, with its port 22 at 2222 of the host's loopback, and without a way to that
loopback.
.TP
.B pasta \-\-config\-net \-a 10.0.2.100/24 \-g 10.0.2.2 \-\-dns\-forward 10.0.2.3 \-\-netns blue
Connects /run/netns/blue, with addresses of its own and a name server at 10.0.2.3.
.SH "SEE ALSO"
.BR network_namespaces (7),
.BR user_namespaces (7)
"""

PASST_TAIL = r""".SH "EXIT STATUS"
.TP
.B 0
Ready, and in the background; or ended by SIGTERM or SIGQUIT, or with
.B \-\-one\-off
by the client's end; or
.BR \-\-help " or " \-\-version .
.TP
.B 1
Something was wrong: one line on standard error says what.
.SH EXAMPLES
.TP
.B passt
Serves the QEMU that connects to /tmp/passt_1.socket:
.B qemu\-system\-x86_64 \-device virtio\-net\-pci,\:netdev=n \-netdev
.B stream,\:id=n,\:server=off,\:addr.type=unix,\:addr.path=/tmp/passt_1.socket
.TP
.B passt \-f \-s vm.socket \-t 2222:22
In the foreground, with the guest's port 22 at the host's port 2222.
.SH "SEE ALSO"
.BR pasta (1),
.BR qemu (1)
"""

REPEAT = {PER_VERSION: "Counts once per IP version.", ADDS_UP: "May be repeated; all count."}
LONG_NAME = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]")


def escape(text: str) -> str:
    """Return text as roff shows it literally, names of options bold."""
    pieces = []
    at = 0
    for match in LONG_NAME.finditer(text):
        pieces += [_literal(text[at : match.start()]), f"\\fB{_literal(match[0])}\\fR"]
        at = match.end()
    text = "".join([*pieces, _literal(text[at:])])
    return "\\&" + text if text.startswith((".", "'")) else text


def _literal(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


def entry(option: Option, mode: int) -> str:
    """Return the paragraph of one option."""
    names = f"\\fB\\-{option.short}\\fR, " if option.short else ""
    names += f"\\fB\\-\\-{_literal(option.long)}\\fR"
    if option.metavar:
        names += f" \\fI{_literal(option.metavar)}\\fR"
    sentences = [option.help[0].upper() + option.help[1:] + "."]
    if option.more:
        sentences.append(option.more)
    if option.repeat in REPEAT:
        sentences.append(REPEAT[option.repeat])
    if option.not_yet:
        refused = "Anything but none is refused" if option.metavar == "SPEC" else "Refused"
        sentences.append(f"{refused} in this version: {option.not_yet}.")
    body = "\n".join(escape(about(sentence, mode)) for sentence in sentences)
    return f".TP\n{names}\n{body}\n"


def render(mode: int) -> str:
    """Return the page of a program."""
    head, tail = (PASTA_HEAD, PASTA_TAIL) if mode == PASTA else (PASST_HEAD, PASST_TAIL)
    parts = [head.format(version=_literal(__version__)), OPTIONS]
    for title, options in GROUPS:
        found = [entry(option, mode) for option in options if option.modes & mode and not option.hidden]
        parts += [f'.SS "{title}"\n', *found] if found else []
    return "".join(parts) + about(PORTS, mode).replace("@AUTO@", AUTO if mode == PASTA else "") + tail


if __name__ == "__main__":
    sys.stdout.write(render({name: mode for mode, name in NAMES.items()}[sys.argv[1]]))
