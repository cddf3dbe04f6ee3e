"""The benchmark: every data path of ours beside the peers that are found, in one run on one machine.

`cli/bench.py` calls it, `cells` says what is measured, `systems` how each system is started, `topology` where,
`runner` in which order, `report` and `baseline` what is made of it. `load` and `delay` are the instruments: loops of
system calls, compiled because Python's own time would be what is measured. Nothing of a running instance imports
this package.
"""
