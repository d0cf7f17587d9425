"""The finished runs of a set, and which of them are one experiment under several seeds."""

import re
from pathlib import Path
from string import ascii_lowercase

from data_prep.files import read_json, read_record
from tools.published import METHODS, SAME, own_batch

OTHER_NETWORKS = ("Inception-BN", "ResNet-50")  # known by their names in a solver's path
GOOGLENET = ("cub", "cars196", "sop")  # sets that are trained with it where nothing else is said
TRAINING = {"solver", "seed", "iterations", "base_lr"}  # of run.json, all of them or it is not known how a run was trained
# What is read out of run.json and metrics.json, as `fits` checks it.
WEIGHTS = {"sha1": str, "bvlc_googlenet": bool}
SETTINGS = {"solver": str, "seed": int, "iterations": int, "iteration": int, "base_lr": float, "batch": int, "network": str,
            "data": dict, "weights": WEIGHTS}  # fmt: skip
RUN = {"settings": SETTINGS, "versions": {"caffe_blas": list}, "command": list}
ABOUT = {"set": {"name": str, "content": str, "official": bool, "doubts": list}, "training": SETTINGS, "pretrained": WEIGHTS}
CLUSTERING = {"method": str, "library": str, "seeds": list, "of_seeds": {"nmi": list, "f1": list}, "clusters": int, "wanted": int}
METRICS = {"about": ABOUT, "made_from": {"features": str}, "n": int, "classes": int, "lone_queries": int, "clustering": CLUSTERING}


def fits(found, kind):
    """Whether a value out of a JSON file is of `kind`: a type, or a dict of the kinds of an object's keys.

    What is missing or null fits, as not known; of WEIGHTS all keys must be there. A float is any number that Python can print.
    """
    if found is None:
        return True
    if isinstance(kind, dict):
        return (isinstance(found, dict) and all(fits(found.get(name), below) for name, below in kind.items())
                and (kind is not WEIGHTS or None not in map(found.get, WEIGHTS)))  # fmt: skip
    if kind is float:
        return isinstance(found, (int, float)) and abs(found) < 1e300
    return type(found) is kind


def read_run(folder):
    """What run.json in a run's folder says: `settings`, `versions`, `command`; empty where there is none.

    ValueError when it is damaged.
    """
    path = folder / "run.json"
    if not path.exists():
        return {}
    record = read_record(path)
    if None in map(record.get, RUN) or not fits(record, RUN):
        raise ValueError(f"{path}: is damaged, or not what tools/train.py writes; it cannot be told how the run was trained. Train "
                         "another (RUN=name), or remove the folder")  # fmt: skip
    return record


def read_metrics(path, again="remove it and call the same command again"):
    """The metrics.json at `path`; ValueError names it, and what to do, when it is missing or damaged."""
    try:
        metrics = read_json(Path(path).read_text())
        whole = min(metrics["n"], metrics["classes"], metrics["clustering"]["clusters"]) > 0
        whole = whole and metrics["clustering"]["method"] and None not in metrics["clustering"].values()
        for row in (metrics, *metrics["baselines"].values()):
            shares = [
                *row["recall_at"].values(),
                row["nmi"],
                row["f1"],
                *([] if row.get("map_at_r") is None else [row["map_at_r"]]),
            ]
            whole = whole and row["recall_at"] and all(map(int, row["recall_at"])) and all(0 <= share <= 1 for share in shares)
        if whole and metrics["about"] is not None and fits(metrics, METRICS):
            return metrics
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; tools/evaluate.py makes it (make demo)") from None
    except (ValueError, KeyError, TypeError, AttributeError, IsADirectoryError):
        pass
    raise ValueError(f"{path}: is not what tools/evaluate.py writes; {again}")


def training_of(metrics):
    """What run.json says about the training behind a metrics.json; empty when that is not known."""
    training = metrics["about"].get("training") or {}
    return training if None not in map(training.get, TRAINING) else {}


def pretrained_of(metrics):
    """The weights of a net that was not trained here, as known_weights has them; empty where one was."""
    return {} if training_of(metrics) else metrics["about"].get("pretrained") or {}


def set_of(metrics):
    """What set.json says about the images behind a metrics.json; empty when that is not known."""
    return metrics["about"].get("set") or {}


def finished_runs(folder, name):
    """The runs of the set `name` that are scored, <folder>/<method>_<dim>[_m<batch>]/<run>/; ValueError lists damaged ones."""
    runs, wrong = [], []
    train = f"make train-{name}" if name in (*GOOGLENET, "demo") else "tools/train.py"
    for path in sorted(folder.glob("*/*/metrics.json")):
        try:
            metrics = read_metrics(path, f"remove it, and have this run scored again ({train} with its own variables)")
            runs.append(describe(path.parent, name, metrics))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))
    if not runs:
        raise ValueError(f"{folder}: no finished run; {train}")
    return runs


def describe(folder, name, metrics):
    """A run as a dict: the keys of SAME, `metrics`, and `words` for what else makes it another experiment than others."""
    kind = folder.parent.name
    parts = re.fullmatch(r"(.+)_(\d+)_m(\d+)|(.+)_(\d+)", kind)
    method, dimensions, batch = (parts[1] or parts[4], int(parts[2] or parts[5]), parts[3]) if parts else (kind, None, None)
    training, data = training_of(metrics), set_of(metrics)
    network = network_of(training, name)
    content = data.get("content")
    words = {
        "network": network or "network not known",
        "recipe": f"recipe of {folder.name} not known",
        "start": "",
        "official": {True: "official", False: "not official"}.get(data.get("official"), "set not known"),
        "content": f"set {content[:8]}" if content else "",
        "clustering": metrics["clustering"]["method"],
    }
    pretrained = pretrained_of(metrics)
    if training or pretrained:
        weights = training.get("weights") if training else pretrained
        words["recipe"] = f"lr {training['base_lr']:g}, {training['iterations']:,} it" if training else "not fine-tuned"
        words["start"] = f"start {'BVLC' if weights['bvlc_googlenet'] else weights['sha1'][:8]}" if weights else "random start"
    return {"method": method.replace("_", " "), "dimensions": dimensions, "network": network,
            "batch": training.get("batch") or int(batch or own_batch(method)), "words": words, "metrics": metrics}  # fmt: skip


def network_of(training, name):
    """The network of a run, as far as its training tells; None when it is not known."""
    solver = re.sub("[-_]", "", training.get("solver", "")).lower()
    named = [network for network in OTHER_NETWORKS if network.replace("-", "").lower() in solver]
    usual = "GoogLeNet" if name in GOOGLENET else "demo net" if "prototxt/demo/" in training.get("solver", "") else None
    return training.get("network") or (named[0] if named else usual)


def grouped(runs):
    """Each experiment as a dict: the keys of SAME, `title`, a `letter` for notes on it, and `runs`, the metrics of its seeds.

    A title names what is not the same in all experiments, and the number of runs where there are several.
    """
    groups = {}
    for run in runs:
        groups.setdefault((*(run[key] for key in SAME), *run["words"].values()), []).append(run)
    differing = [word for word in runs[0]["words"] if len({run["words"][word] for run in runs}) > 1]
    experiments = []
    for group in groups.values():
        first = group[0]
        title = [f"{first['method']} {first['dimensions'] or ''}".strip()]
        title += [f"batch {first['batch']}"] if first["batch"] != own_batch(first["method"]) else []
        title += [first["words"][word] for word in differing if first["words"][word]]
        title += [f"{len(group)} runs"] if len(group) > 1 else []
        keys = {key: first[key] for key in SAME}
        experiments.append({**keys, "title": ", ".join(title), "runs": [run["metrics"] for run in group]})
    place = {method: number for number, method in enumerate(METHODS)}
    experiments.sort(key=lambda one: (place.get(one["method"], len(place)), one["method"], one["dimensions"] or 0, one["batch"],
                                      one["title"]))  # fmt: skip
    for number, experiment in enumerate(experiments):
        experiment["letter"] = ascii_lowercase[number % 26] * (number // 26 + 1)
    return experiments
