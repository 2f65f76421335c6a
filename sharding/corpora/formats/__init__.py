"""One file a corpus format: tables, class folders, Sports-1M, Kinetics, UCF101 and HMDB51."""
