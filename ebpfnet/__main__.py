"""``python -m ebpfnet``: the command line."""

from ebpfnet.cli.main import main

if __name__ == "__main__":
    main()
