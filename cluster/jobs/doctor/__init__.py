"""`reelscale doctor`: checks of this machine, each of which says what is wrong and how to mend it."""
