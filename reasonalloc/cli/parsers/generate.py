"""Options of `reasonalloc generate`."""

from __future__ import annotations

from reasonalloc.cli import options


def add(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser("generate", help="answer a prompt with a compressed cache")
    options.add_model(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT")
    source.add_argument("--prompt-file", metavar="FILE", help="UTF-8 text; - for standard input")
    options.add_cache(parser)
    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=options.positive, default=512, metavar="N", help="(512)")
    group.add_argument("--sample", action="store_true", help="draw tokens instead of taking the likeliest")
    group.add_argument("--temperature", type=options.not_negative, default=None, help="with --sample (0.6)")
    group.add_argument("--top-p", type=options.share, default=None, help="with --sample (0.95)")
    group.add_argument("--seed", type=options.natural, default=0, help="with --sample (0)")
    parser.add_argument(
        "--trace", type=options.file_in_folder, metavar="FILE", help="record every cut, for `reasonalloc report`"
    )
    options.add_json(parser)
    parser.set_defaults(run=options.late("generate"))
