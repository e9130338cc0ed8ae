"""`python -m asynclm.adapters.models.simulated`: the simulated upstream without the rest of asynclm."""

import argparse
import sys

from .server import add_arguments, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m asynclm.adapters.models.simulated", description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
