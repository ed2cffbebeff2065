"""Options of `reasonalloc evaluate`."""

from __future__ import annotations

from reasonalloc.cli import options, settings
from reasonalloc.cli.parsers import accuracy, transfer
from reasonalloc.cli.parsers import study as accuracy_options
from reasonalloc.methods import methods


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("evaluate", help="measure how good a compressed cache is")
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    fidelity = kinds.add_parser(
        "fidelity",
        help="distance from the full cache under teacher forcing",
        description="Feeds prompts and reference solutions token by token with the full cache and with each method at"
        " each budget, and compares the distributions of the next token: negative log-likelihood of the reference, KL"
        " divergence from the full cache, agreement of the likeliest token; bytes and slots beside them."
        " The reference solutions are the model's own, generated once with the full cache for problems of MATH-500,"
        " which has answers but no worked solutions, and kept in ~/.cache/reasonalloc/texts (so an interrupted run goes"
        " on where it stopped); --texts takes given ones, --task the worked answers of ledger or search, --documents"
        " pieces of text files. Differences in KL from R-KV (--against) are paired by text.",
    )
    options.add_model(fidelity)
    fidelity.add_argument(
        "--methods", type=options.comma(str), default=["reasonalloc", "rkv", "snapkv", "streaming", "random"],
        metavar="A,B", help=f"of {', '.join(methods())} (reasonalloc,rkv,snapkv,streaming,random)",
    )  # fmt: skip
    fidelity.add_argument(
        "--ablation", metavar="NAME",
        help="the cells of `reasonalloc ablate NAME` at each of --budgets in place of --methods; --profile is its wave",
    )  # fmt: skip
    fidelity.add_argument("--cells", type=options.comma(str), metavar="A,B", help="of --ablation, by name (all)")
    fidelity.add_argument("--against", metavar="METHOD", help="others are compared with (rkv, where it is one of them)")
    size = fidelity.add_mutually_exclusive_group()
    size.add_argument(
        "--budgets", type=options.comma(options.positive), metavar="N,N", help="slots of a KV head (64,128,256)"
    )
    size.add_argument("--ratios", type=options.comma(options.share), metavar="X,X", help="shares of the full cache")
    size.add_argument(
        "--max-bytes", type=options.comma(str), metavar="SIZE,SIZE",
        help="bytes of the whole cache of --batch-size texts at its largest after the prompt, however often a method is"
        " cut",
    )  # fmt: skip
    options.add_interval(fidelity)
    options.add_keep_prompt(fidelity)
    settings.add(fidelity, settings.VARIED)
    options.add_profile(fidelity)
    fidelity.add_argument(
        "--problems", type=options.positive, default=4, metavar="N", help="or texts, or pieces of documents (4)"
    )
    fidelity.add_argument(
        "--tokens", type=options.positive, default=512, metavar="N", help="of a solution at most (512)"
    )
    fidelity.add_argument(
        "--seed", type=options.natural, default=0, help="of the choice of problems and the bootstrap (0)"
    )
    source = fidelity.add_mutually_exclusive_group()
    source.add_argument("--texts", metavar="FILE", help="JSON lines with 'problem' and 'solution': reference solutions")
    source.add_argument("--task", choices=("ledger", "search"), help="its problems, with the answers that it works out")
    source.add_argument(
        "--documents", type=options.comma(str), metavar="FILE,FILE", help="texts, cut into --prompt-tokens and --tokens"
    )
    source.add_argument(
        "--temperature", type=options.not_negative, default=0.0, help="of the model's own solutions (0: greedy)"
    )
    fidelity.add_argument(
        "--settings", type=accuracy_options.settings_type, metavar="A,B", help=accuracy_options.SETTINGS
    )
    fidelity.add_argument(
        "--prompt-tokens", type=options.positive, default=128, metavar="N", help="of a piece of --documents (128)"
    )
    fidelity.add_argument(
        "--batch-size", type=options.positive, default=1, metavar="N", help="texts that are fed side by side (1)"
    )
    fidelity.add_argument("--plot", type=options.new_file, metavar="PNG", help="draw the result over the budget")
    options.add_json(fidelity)
    fidelity.set_defaults(run=options.late("evaluate"))
    accuracy.add(kinds)
    transfer.add(kinds)
