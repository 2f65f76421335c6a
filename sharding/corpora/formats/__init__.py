"""The formats of corpora: tables, JSON, class folders, and the lists of Sports-1M, Kinetics, UCF101 and HMDB51."""
