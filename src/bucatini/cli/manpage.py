"""The manual page, rendered from the option table: `python -m bucatini.cli.manpage [FILE]` writes roff."""

import sys
from pathlib import Path

from bucatini import __version__
from bucatini.cli.options import OPTIONS, Option

HEAD = """.TH PASTA 1 "" "Bucatini {version}" "User Commands"
.SH NAME
pasta \\- rootless networking for namespaces
.SH SYNOPSIS
.B pasta
.RI [ OPTION ]...\\& [ COMMAND
.RI [ ARGUMENT ]...]
.br
.B pasta
.RI [ OPTION ]...\\& PID
.br
.B pasta
.RI [ OPTION ]...\\&
.BI \\-\\-netns " PATH" | NAME
.SH DESCRIPTION
.B pasta
connects a network namespace to the network without any privilege. It makes a tap interface in the namespace and
translates between its Ethernet frames and ordinary TCP, UDP and ping sockets of the host.
.PP
Given a command, or nothing (then it is the user's shell), it makes new user, network, mount, IPC, UTS and PID
namespaces, runs the command there as root of them, and exits with its status, 128+N if signal N ended it. Given a
process number or
.BR \\-\\-netns ,
it joins the namespaces that are there and goes to the background when everything is ready.
.PP
Nothing is translated by default: the namespace has the host's address. Traffic to the gateway's address reaches the
host's loopback, unless
.B \\-\\-no\\-map\\-gw
is given.
.SH OPTIONS
Options end at the first operand. Of conflicting ones the last counts. Long options may be abbreviated.
"""

TAIL = """.SH "PORT SPECIFICATIONS"
.TP
.B none
no port
.TP
.B all
every port but those that the kernel hands out itself (net.ipv4.ip_local_port_range); ports that are in use are left out
.TP
.IR ports " or [" address "][%" interface "]/" ports
a list, separated by commas, of
.IR first [\\- last ][:[ toaddress /] to [\\- tolast ]],
.IR first [\\- last ]: toaddress ,
.BR all [: \\fItoaddress\\fR ]
and
.BR ~ \\fIfirst\\fR[\\-\\fIlast\\fR]
(not these). A list of nothing but exclusions means all other ports. IPv6 addresses may stand in brackets.
.SH "EXIT STATUS"
0 at SIGTERM, or when the namespace is gone; the status of the command; 1 when something was wrong, with one line on
standard error.
.SH EXAMPLES
.TP
.B pasta \\-\\-config\\-net
a shell in a namespace that reaches everything the host reaches
.TP
.B pasta \\-\\-config\\-net \\-t 8080:80 \\-\\- busybox httpd \\-f \\-p 80
a web server in a namespace, at the host's port 8080
.TP
.B pasta \\-\\-config\\-net \\-\\-no\\-map\\-gw 1234
connects the namespace of process 1234, without a way to the host's loopback
.SH "SEE ALSO"
.BR bucatini (1),
.BR network_namespaces (7),
.BR user_namespaces (7)
"""


def escape(text: str) -> str:
    """Return text as roff shows it literally."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text.startswith((".", "'")) else text


def entry(option: Option) -> str:
    """Return the paragraph of one option."""
    names = f"\\fB\\-{option.short}\\fR, " if option.short else ""
    names += f"\\fB\\-\\-{escape(option.long)}\\fR"
    if option.metavar:
        names += f" \\fI{escape(option.metavar)}\\fR"
    body = escape(option.help[0].upper() + option.help[1:] + ".")
    if option.more:
        body += "\n" + escape(option.more)
    return f".TP\n{names}\n{body}\n"


def render() -> str:
    """Return the page."""
    return HEAD.format(version=__version__) + "".join(map(entry, OPTIONS)) + TAIL


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(render())
    else:
        sys.stdout.write(render())
