"""``python -m stompp_kernels`` says what runs here; with arguments it is the `stompp` command."""

import sys

from stompp_kernels.torch_release import torch_problem


def main() -> int:
    """Runs the command line, or says in one line which torch is needed."""
    problem = torch_problem()
    if problem:
        print(f"stompp: {problem}", file=sys.stderr)
        return 2
    from stompp_kernels import cli

    return cli.main()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.argv.append("info")
    raise SystemExit(main())
