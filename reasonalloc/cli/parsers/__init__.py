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
    tune,
)

COMMANDS = (
    demo,
    profile,
    calibrate,
    generate,
    evaluate,
    ablate,
    study_file,
    tune,
    paper,
    report,
    bench,
    rlkv,
    doctor,
    completion,
)  # as help lists them
