"""The exit codes of the commands."""

DONE = 0
FAILED = 1
MISTAKE = 2  # the user's: one message says what, where and the remedy
STOPPED = 75  # by a signal, with everything saved: run the same command again to go on (sysexits.h's EX_TEMPFAIL)
