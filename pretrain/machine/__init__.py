"""Small trials of this machine: do its GPUs, its compilers and its network do what training asks of them?"""
