"""Published code, run as it is in its repository: what is named, from a file of one commit, and nothing else."""

import ast
import math
import subprocess
import types

import torch


def definitions(repository, commit, path, wanted, **names):
    """The classes and functions `wanted` of a file, which see each other, torch and `names`. repository: a git
    directory. What the file imports is not imported, and what it prints is not printed.
    """
    text = subprocess.run(
        ["git", "-C", repository, "show", f"{commit}:{path}"], capture_output=True, text=True, check=True
    ).stdout
    own = [x for x in ast.parse(text).body if isinstance(x, (ast.ClassDef, ast.FunctionDef)) and x.name in wanted]
    module = types.ModuleType(path)
    module.__dict__.update(torch=torch, nn=torch.nn, F=torch.nn.functional, math=math, print=lambda *_, **__: None)
    module.__dict__.update(names)
    exec(compile(ast.Module(own, []), path, "exec"), module.__dict__)
    return [getattr(module, x) for x in wanted]
