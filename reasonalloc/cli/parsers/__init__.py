"""Options of the commands, one file each. Nothing here needs torch: help comes at once."""

from reasonalloc.cli.parsers import (
    ablate,
    bench,
    calibrate,
    completion,
    demo,
    doctor,
    evaluate,
    generate,
    paper,
    profile,
    report,
    rlkv,
    study_file,
)

COMMANDS = (
    demo,
    profile,
    calibrate,
    generate,
    evaluate,
    ablate,
    study_file,
    paper,
    report,
    bench,
    rlkv,
    doctor,
    completion,
)  # as help lists them
