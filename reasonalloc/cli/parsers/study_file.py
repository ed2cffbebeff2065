"""Options of `reasonalloc study`."""

from __future__ import annotations

from reasonalloc.cli import options
from reasonalloc.cli.parsers import study


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("study", help="compare what a file says, as it says")
    kinds = parser.add_subparsers(title="what", metavar="WHAT", required=True)
    run = kinds.add_parser(
        "run",
        help="make the chains of a study and its tables",
        description="A study file (YAML) says which settings of the cache are compared on which problems of which seed,"
        " and which comparisons are made: written before the chains, it is the plan."
        " It may name ablations too. docs/evaluation.md has an example."
        " Chains are kept and gone on from as by `evaluate accuracy`. The folder gets NAME.json, NAME.md and NAME.png,"
        " or NAME-part.json and so on of a part (--budgets, --cells).",
    )
    run.add_argument("file", metavar="FILE", help="the study, or the name of one that `reasonalloc study show` lists")
    run.add_argument("--output", metavar="DIR", help="for generations and results (studies-out/NAME)")
    run.add_argument("--device-map", metavar="MAP", help="where the model lies: auto, cuda, cuda:1, ... (cpu)")
    run.add_argument("--threads", type=options.positive, metavar="N", help="of torch (default: torch's own choice)")
    run.add_argument(
        "--budgets", type=options.comma(options.positive), metavar="N,N", help="only these of the file's (all)"
    )
    run.add_argument("--cells", type=options.comma(str), metavar="A,B", help="only these of the file's (all)")
    run.add_argument("--batch-size", type=options.positive, metavar="N", help="that decode together (the file's)")
    run.add_argument("--regrade", action="store_true", help="grade the chains that are there again, from their texts")
    run.add_argument("--pack", action="store_true", help="also write generations.jsonl.gz")
    study.add_ray(run)
    study.add_shard(run)
    study.add_dry_run(run)
    options.add_json(run)
    run.set_defaults(run=options.late("study_file"))
    show = kinds.add_parser(
        "show",
        help="the studies that come with this package",
        description="Lists the studies that come with this package, the paper's tables and the ablations, or prints one"
        " of them: as it is for `reasonalloc study run NAME`, or to be changed as a file of your own.",
    )
    show.add_argument("name", nargs="?", metavar="NAME", help="prints this one")
    show.set_defaults(run=options.late("study_file", "show"))
    merge = kinds.add_parser(
        "merge",
        help="put the chains of shards into one folder",
        description="Chains that runs with --shard made become those of one study, to go on from or to make tables of"
        " with the same command without --shard. Shards of other settings, and chains that two of them have and that"
        " differ, are refused with nothing changed.",
    )
    merge.add_argument("folder", metavar="DIR", help="where they go, beside what is there already")
    merge.add_argument(
        "shards", nargs="*", metavar="SHARD", help="folders of shards, or above them (default: those inside of DIR)"
    )
    options.add_json(merge)
    merge.set_defaults(run=options.late("study_file", "merge"))
