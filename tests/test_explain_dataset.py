"""A data set explained into a folder: the numbers, broken images, kills, full disks, memory."""

import errno
import functools
import json
import math
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from diffgradcam import DiffGradCAM, Explanation, GradCAM, TrueFalseCAM, audit
from diffgradcam.data import Explanations, explain_dataset, open_explanations, store
from diffgradcam.methods.fullgrad import FullGrad
from diffgradcam.methods.smoothing import AugSmooth, NoiseSmooth
from tests import models

pytest.importorskip("safetensors", reason="stores need the extra store")
ROOT = Path(__file__).parent.parent
IMAGES = models.images(batch=11)
LABELS = torch.arange(11) % 5


class Photos(Dataset):
    """Eleven images and their labels; broken where told, and it counts how often each is read."""

    def __init__(self, raises=(), nan=(), odd=(), overflow=()):
        self.raises, self.nan, self.odd, self.overflow = raises, nan, odd, overflow
        self.read = []

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, position):
        self.read.append(position)
        if position in self.raises:
            raise OSError("image file is truncated")
        image = IMAGES[position].clone()
        if position in self.nan:
            image[0, 2, 3] = math.nan
        if position in self.overflow:
            image *= 5e307  # finite, but not in the model
        if position in self.odd:
            image = image[:1]
        return image, LABELS[position]


def explain(out, cam=None, dataset=None, **options):
    """The call of most tests: batches of 2, shards of 4."""
    cam = GradCAM(models.pooled(), "relu") if cam is None else cam
    loader = DataLoader(Photos() if dataset is None else dataset, batch_size=2)
    return explain_dataset(cam, loader, out, **{"shard_size": 4, "progress": False, **options})


def contents(out):
    """Every file of a folder but the description."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.name != "run.json"}


def same(first, second):
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name])
    assert list(first.rows()) == list(second.rows())


def test_maps_and_numbers_are_those_of_explain(tmp_path):
    cam = DiffGradCAM(models.deep(), "relu")
    found = explain(tmp_path / "out", cam)
    logits, classes, maps = cam.explain(IMAGES)
    assert list(found) == list(range(11))
    for position in range(11):
        torch.testing.assert_close(found[position], maps[position], rtol=1e-12, atol=1e-12)
    rows = list(found.rows())
    assert [row["position"] for row in rows] == [row["id"] for row in rows] == list(range(11))
    assert [row["class"] for row in rows] == classes.tolist() == [row["decision"] for row in rows]
    for row, p, z, map_ in zip(rows, logits.softmax(1), logits, maps, strict=True):
        c = row["class"]
        others = [math.exp(v) for k, v in enumerate(z.tolist()) if k != c]
        assert row["score"] == pytest.approx(z[c].item() - math.log(sum(others)))
        assert row["probability"] == pytest.approx(p[c].item())
        q = [v / map_.sum().item() for v in map_.flatten().tolist() if v > 0]
        assert row["entropy"] == pytest.approx(-sum(v * math.log(v) for v in q))
        assert "common_mode_share" not in row


def test_layout_on_disk(tmp_path):
    explain(tmp_path / "out", ids=[f"{n}.png" for n in range(11)])
    names = [f"{kind}-00000{n}.{end}" for kind, end in (("maps", "safetensors"), ("rows", "jsonl")) for n in range(3)]
    assert sorted(contents(tmp_path / "out")) == sorted([*names, "index.jsonl"])
    lines = [json.loads(line) for line in (tmp_path / "out/index.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"{n}.png" for n in range(11)]
    assert [(line["shard"], line["map"]) for line in lines] == [(n // 4, n % 4) for n in range(11)]
    load_file = pytest.importorskip("safetensors.torch").load_file
    found = open_explanations(tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out/maps-000001.safetensors")["maps"][2], found["6.png"])


def test_shards_give_all_maps(tmp_path):
    found = explain(tmp_path / "out", dataset=Photos(raises=[4, 5, 6, 7, 9]), on_error="skip")
    positions = [[row["position"] for row in rows] for rows, _ in found.shards()]
    assert positions == [[0, 1, 2, 3], [8, 10]]  # a shard without a map has no file of maps
    for rows, maps in found.shards():
        for row, map_ in zip(rows, maps, strict=True):
            assert torch.equal(map_, found[row["id"]])


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (2, 2),
        ("all", "all"),
        ("top2", "top2"),
        (lambda batch: batch[1], LABELS),
        (lambda batch: torch.arange(3).expand(len(batch[0]), 3), torch.arange(3).expand(11, 3)),
    ],
    ids=["one", "all", "two", "labels", "three"],
)
def test_classes_in_every_form(tmp_path, classes, expected):
    cam = GradCAM(models.deep(), "relu")
    found = explain(tmp_path / "out", cam, classes=classes)
    wanted = cam.explain(IMAGES, expected)
    rows = list(found.rows())
    assert [row["class"] for row in rows] == wanted.classes.tolist()
    columns = wanted.classes.view(11, -1)
    scores = wanted.logits.gather(1, columns).view(wanted.classes.shape)
    torch.testing.assert_close(torch.tensor([row["score"] for row in rows], dtype=torch.float64), scores)
    assert [row["decision"] for row in rows] == wanted.logits.argmax(1).tolist()
    for position in range(11):
        torch.testing.assert_close(found[position], wanted.maps[position], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("classes", [None, "all"])
def test_common_mode_share_is_the_audits(tmp_path, classes):
    model = models.deep()
    model.head.weight.data += 1.0  # a common mode to find
    report = audit(model, "relu", IMAGES)
    found = explain(tmp_path / "out", TrueFalseCAM(model, "relu"), common_mode=True, classes=classes)
    shares = [row["common_mode_share"] for row in found.rows()]
    if classes == "all":
        assert all(len(share) == 5 for share in shares)
        shares = [share[c] for share, c in zip(shares, report.classes.tolist(), strict=True)]
    torch.testing.assert_close(torch.tensor(shares, dtype=torch.float64), report.common_mode_share.double())
    assert min(shares) > 0.01


class Mine:
    """An explainer that is none of the library's."""

    def explain(self, images, classes=None):
        assert classes is None
        return Explanation(images.mean((2, 3)), images.mean((2, 3)).argmax(1), images.mean(1))


@pytest.mark.parametrize(
    "cam",
    [
        TrueFalseCAM(models.deep(), "relu"),
        NoiseSmooth(DiffGradCAM(models.deep(), "relu", baseline="max"), samples=2),
        FullGrad(models.pooled()),
        Mine(),
    ],
    ids=lambda cam: type(cam).__name__,
)
def test_any_method(tmp_path, cam):
    found = explain(tmp_path / "out", cam)
    wanted = [cam.explain(part) for part in IMAGES.split(2)]
    assert torch.equal(torch.stack(list(found.values())), torch.cat([part.maps for part in wanted]))
    score = [row["score"] for row in found.rows()]
    logits = torch.cat([part.logits for part in wanted])
    top = logits.topk(2, 1).values
    contrast = isinstance(cam, TrueFalseCAM | NoiseSmooth)
    expected = top[:, 0] - top[:, 1] if contrast else top[:, 0]
    torch.testing.assert_close(torch.tensor(score, dtype=torch.float64), expected)


def test_workers_shuffling_and_drop_last_change_nothing(tmp_path):
    cam = GradCAM(models.deep(), "relu")
    loaders = {
        "plain": DataLoader(Photos(), batch_size=2),
        "shuffled": DataLoader(Photos(), batch_size=2, shuffle=True, drop_last=True),
        "workers": DataLoader(Photos(), batch_size=2, num_workers=2, prefetch_factor=3),
        "padded": DataLoader(Photos(), batch_size=2, sampler=DistributedSampler(Photos(), num_replicas=4, rank=1)),
    }
    for name, loader in loaders.items():
        explain_dataset(cam, loader, tmp_path / name, shard_size=3, progress=False)
    for name in loaders:
        assert contents(tmp_path / name) == contents(tmp_path / "plain")


def test_broken_images_are_recorded_and_the_rest_is_untouched(tmp_path):
    found = explain(
        tmp_path / "out",
        dataset=Photos(raises=[0, 8, 9], nan=[3], overflow=[5]),
        on_error="skip",
        classes=lambda batch: batch[1],
        ids=[f"image {n}" for n in range(11)],
    )
    clean = explain(tmp_path / "clean", classes=lambda batch: batch[1])
    failures = {row["id"]: row["error"] for row in found.failures()}
    assert failures["image 0"] == failures["image 9"] == "OSError: image file is truncated"
    assert failures["image 3"] == "the image has values that are NaN or infinite"
    assert "NaN or infinite" in failures["image 5"]
    assert sorted(failures) == sorted(f"image {n}" for n in (0, 3, 5, 8, 9))
    assert [row["position"] for row in found.rows()] == list(range(11))
    assert list(found) == [f"image {n}" for n in (1, 2, 4, 6, 7, 10)]
    assert found.missing == 0
    for n in (1, 2, 4, 6, 7, 10):
        torch.testing.assert_close(found[f"image {n}"], clean[n], rtol=1e-12, atol=1e-12)
        assert next(r for r in found.rows() if r["position"] == n)["class"] == LABELS[n]
    with pytest.raises(KeyError, match="'image 3' is broken, so it has no map: the image has values that are NaN"):
        found["image 3"]


def test_a_wrong_label_is_no_broken_image(tmp_path):
    """What is wrong with an argument is raised, however broken images are treated."""
    loader = DataLoader(Photos(), batch_size=4)
    wrong = {"classes": lambda batch: torch.full((len(batch[0]),), 9), "on_error": "skip", "progress": False}
    with pytest.raises(ValueError, match="class 9 is out of range; the model has classes 0 to 4"):
        explain_dataset(GradCAM(models.pooled(), "relu"), loader, tmp_path / "out", **wrong)

    def one_wrong(batch):
        return torch.tensor([9 if bool((image == Photos()[5][0]).all()) else 0 for image in batch[0]])

    with pytest.raises(ValueError, match="class 9 is out of range; the model has classes 0 to 4"):
        explain_dataset(GradCAM(models.pooled(), "relu"), loader, tmp_path / "out2", **{**wrong, "classes": one_wrong})


def test_an_image_of_another_shape_is_broken(tmp_path):
    loader = DataLoader(Photos(odd=[1]), batch_size=4)
    found = explain_dataset(GradCAM(models.pooled(), "relu"), loader, tmp_path / "out", on_error="skip", progress=False)
    assert [row["error"] for row in found.failures()] == [
        "the image has shape (1, 6, 5), others of its batch (3, 6, 5)"
    ]
    assert len(found) == 10


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"raises": [6]}, "image 'six' is broken: OSError: image file is truncated; dataset\\[6\\] shows where"),
        ({"nan": [6]}, "image 'six' is broken: the image has values that are NaN"),
        ({"overflow": [6]}, "image 'six' is broken: NonFiniteValues: .* of image 0 is NaN or infinite"),
    ],
)
def test_stops_at_a_broken_image_and_goes_on_when_it_is_mended(tmp_path, broken, message):
    ids = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    with pytest.raises(RuntimeError, match=message):
        explain(tmp_path / "out", dataset=Photos(**broken), ids=ids)
    found = open_explanations(tmp_path / "out")
    assert list(found) == ids[:4]
    assert found.missing == 7
    with pytest.raises(KeyError, match=r"no image 'six' in .*; ids look like 'zero'; 7 images are still missing"):
        found["six"]
    mended = Photos()
    explain(tmp_path / "out", dataset=mended, ids=ids)
    assert mended.read == list(range(4, 11))  # what is done is not even read again
    explain(tmp_path / "clean", ids=ids)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_a_wrong_set_up_is_not_taken_for_broken_images(tmp_path):
    with pytest.raises(ValueError, match="layer 'head' has no spatial positions"):
        explain(tmp_path / "out", GradCAM(models.pooled(), "head"), on_error="skip")


class Died(BaseException):
    """Stands for the moment of a kill."""


@pytest.mark.parametrize("moment", range(1, 9))
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_death_at_every_step_of_writing(tmp_path, monkeypatch, moment, call):
    explain(tmp_path / "clean")
    count = 0
    real = getattr(os, call)

    def dies(*args):
        nonlocal count
        count += 1
        if count == moment:
            raise Died("at this moment")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, dies)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # the dead do not tidy up
        with pytest.raises(Died, match=r"^at this moment$"):
            explain(tmp_path / "out")
    if moment > 1:
        found = open_explanations(tmp_path / "out")
        assert len(found) == len(found.done()) * 4 if moment < 8 else 11
        assert [row["position"] for row in found.rows()] == list(range(len(found)))
    found = explain(tmp_path / "out")
    left = {name: data for name, data in contents(tmp_path / "out").items() if not name.endswith(".partial")}
    assert left == contents(tmp_path / "clean")
    assert found.missing == 0


KILLS = """
import os, random, signal, sys, time
import safetensors.torch
import torch
from torch.utils.data import DataLoader
from diffgradcam import Explanation
from diffgradcam.data import explain_dataset
from tests import models

class Fast:  # no autograd, which does not like to be forked
    def explain(self, images, classes=None):
        return Explanation(images.mean((2, 3)), images.mean((2, 3)).argmax(1), images.mean(1))

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 120
    def __getitem__(self, position):
        time.sleep(0.004)
        return models.images(1, seed=position)[0]

def run(out):
    loader = DataLoader(Slow(), batch_size=2)
    explain_dataset(Fast(), loader, out, shard_size=4, progress=False)

torch.set_num_threads(1)
out, clean = sys.argv[1:]
run(clean)  # also imports everything before the forks
os.mkdir(out)
chance = random.Random(0)
kills = 0
while True:
    enough = len(os.listdir(out)) + chance.randint(1, 8)  # files: so that each life gets somewhere, and no two as far
    child = os.fork()
    if child == 0:
        os.nice(10)  # on a busy machine too, its killer comes first
        run(out)
        os._exit(0)
    while len(os.listdir(out)) < enough and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(chance.uniform(0, 0.02))
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        break
    kills += 1
run(out)
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a process that it forks, which Windows cannot")
def test_killed_many_times_it_neither_loses_nor_doubles_an_image(tmp_path):
    out, clean = tmp_path / "out", tmp_path / "clean"
    done = subprocess.run([sys.executable, "-c", KILLS, out, clean], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5
    assert [row["position"] for row in open_explanations(out).rows()] == list(range(120))
    left = {name: data for name, data in contents(out).items() if not name.endswith(".partial")}
    assert left == contents(clean)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, where every write finds a full disk")
@pytest.mark.parametrize("file", ["maps-000001.safetensors", "rows-000001.jsonl"])
def test_a_full_disk_leaves_a_readable_store(tmp_path, file):
    out = tmp_path / "out"
    out.mkdir()
    (out / f".{file}.0.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device, while writing shard 1 .*run the same again") as caught:
        explain(out)
    assert caught.value.errno == errno.ENOSPC
    found = open_explanations(out)
    assert list(found) == [0, 1, 2, 3]
    assert found[3].shape == (6, 5)
    assert not list(out.glob(".*"))  # the incomplete file made room
    explain(tmp_path / "clean")
    explain(out)
    assert contents(out) == contents(tmp_path / "clean")


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    alive, most = [], []

    class Watched(Mine):
        def explain(self, images, classes=None):
            nonlocal alive
            explanation = super().explain(images, classes)
            alive = [ref for ref in alive if ref() is not None] + [weakref.ref(images), weakref.ref(explanation.maps)]
            most.append(len(alive))
            return explanation

    loader = DataLoader(TensorDataset(torch.rand(2000, 3, 4, 4)), batch_size=5)
    found = explain_dataset(Watched(), loader, tmp_path / "out", shard_size=20, progress=False)
    assert len(found) == 2000
    assert len(most) == 400
    assert max(most) <= 2 * 4 + 4  # the maps of two shards of four batches, and the batch in work


def test_another_run_is_not_mixed_in(tmp_path):
    explain(tmp_path / "out")
    for cam, message in [
        (DiffGradCAM(models.pooled(), "relu"), "method: {.*GradCAM.* there, {.*DiffGradCAM.*} now"),
        (GradCAM(models.pooled(), "features"), "method: .*'relu'.* there, .*'features'.* now"),
        (GradCAM(models.pooled(seed=1), "relu"), "weights: '.*' there, '.*' now"),
    ]:
        with pytest.raises(ValueError, match=rf"holds the explanations of another run \({message}\); give another out"):
            explain(tmp_path / "out", cam)
    with pytest.raises(ValueError, match="images: 11 there, 10 now"):
        explain(tmp_path / "out", dataset=Subset(Photos(), range(10)))


@pytest.mark.parametrize("options", [{"flips": (-2,)}, {"factors": (0.5, 1.0)}, {"scales": (1.0, 2.0)}])
def test_another_augmentation_is_not_mixed_in(tmp_path, options):
    def cam(**options):
        return AugSmooth(GradCAM(models.pooled(), "relu"), **options)

    explain(tmp_path / "out", cam())
    explain(tmp_path / "out", cam(flips=[-1], factors=[0.9, 1.0, 1.1], scales=[1.0]))
    (name,) = options
    with pytest.raises(
        ValueError, match=rf"another run \(method: .*'{name}': \[.* there, .*'{name}': \[.* now\); give"
    ):
        explain(tmp_path / "out", cam(**options))


def test_another_argument_of_a_score_is_not_mixed_in(tmp_path):
    def cam(strength):
        def score(factor, logits, classes):
            return factor * logits.gather(1, classes.unsqueeze(1)).squeeze(1)

        return GradCAM(models.pooled(), "relu", score=functools.partial(score, strength))

    explain(tmp_path / "out", cam(1))
    with pytest.raises(ValueError, match=r"method: .*score\(1\).* there, .*score\(2\).* now"):
        explain(tmp_path / "out", cam(2))


def test_other_ids_are_not_mixed_in(tmp_path):
    explain(tmp_path / "none")
    explain(tmp_path / "out", ids=range(11))
    (tmp_path / "out/rows-000001.jsonl").unlink()
    other = ([*range(10), 11], [str(n) for n in range(11)], [1, 0, *range(2, 11)], [f"{n}\n" for n in range(11)])
    for ids in other:
        with pytest.raises(ValueError, match=r"another run \(ids: '[0-9a-f]{64}' there, '[0-9a-f]{64}' now\); give"):
            explain(tmp_path / "out", ids=ids)
        with pytest.raises(ValueError, match=r"another run \(ids: None there, '[0-9a-f]{64}' now\); give another"):
            explain(tmp_path / "none", ids=ids)
    with pytest.raises(ValueError, match=r"another run \(ids: '[0-9a-f]{64}' there, None now\); give another out"):
        explain(tmp_path / "out")
    assert list(explain(tmp_path / "out", ids=list(range(11)))) == list(range(11))


def test_a_finished_run_does_nothing(tmp_path):
    first = explain(tmp_path / "out")
    dataset = Photos()
    cam = GradCAM(models.pooled(), "relu")
    cam(IMAGES)  # what a call leaves behind in the CAM is none of its options
    again = explain(tmp_path / "out", cam, dataset)
    assert dataset.read == []
    same(first, again)
    assert repr(again) == f"<Explanations '{tmp_path / 'out'}': 11 of 11 images, 0 missing>"


def test_progress_bar(tmp_path, capsys):
    explain(tmp_path / "out", dataset=Photos(raises=[2]), on_error="skip", progress=True)
    bar = capsys.readouterr().err
    assert "11/11" in bar
    assert "images/s" in bar
    assert "broken=1" in bar


class Endless(IterableDataset):
    def __iter__(self):
        return iter(IMAGES)


CAM = GradCAM(models.pooled(), "relu")
LOADER = DataLoader(Photos(), batch_size=2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((GradCAM, LOADER), TypeError, r"cam is the class GradCAM; expected a CAM or an object with explain"),
        ((models.pooled(), LOADER), TypeError, "cam is Sequential; expected a CAM"),
        ((CAM, [IMAGES]), TypeError, "loader is list; expected a torch.utils.data.DataLoader of a data set with"),
        ((CAM, DataLoader(Endless())), TypeError, "loader is of an IterableDataset; expected"),
        ((CAM, DataLoader([])), ValueError, "the data set is empty"),
        (
            (CAM, DataLoader(Photos(), sampler=SubsetRandomSampler([1, 2]))),
            ValueError,
            r"draws with SubsetRandomSampler, .* choose images with torch.utils.data.Subset",
        ),
        (
            (CAM, DataLoader(Photos(), batch_sampler=BatchSampler(SequentialSampler(Photos()), 2, False))),
            ValueError,
            "draws with BatchSampler, .* batches with batch_size=",
        ),
        ((CAM, DataLoader(Photos(), batch_size=None)), ValueError, "draws with batch_size=None"),
        ((CAM, DataLoader([{"pixels": IMAGES[0]}])), TypeError, "batches are dict; expected images, or a sequence"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        explain_dataset(*arguments, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": "labels"}, ValueError, "classes='labels'; the words for classes are 'all' and 'top1'"),
        ({"classes": 1.5}, ValueError, "classes is 1.5; expected None, an int, 'all', 'top5', or a function"),
        ({"classes": True}, ValueError, "classes is True; expected"),
        ({"classes": 9}, ValueError, "class 9 is out of range; the model has classes 0 to 4"),
        ({"on_error": "ignore"}, ValueError, r"on_error is 'ignore'; expected one of 'stop', 'skip'"),
        ({"shard_size": 0}, ValueError, "shard_size is 0; expected an integer of at least 1"),
        ({"ids": ["a"]}, ValueError, "ids are 1 of str for 11 images; expected a str or an int for each"),
        ({"ids": "abcdefghijk"}, ValueError, "ids are 11 of str for 11 images; expected"),
        ({"ids": [0.5] * 11}, ValueError, "ids are 11 of float for 11 images; expected"),
        ({"ids": ["a"] * 11}, ValueError, "id 'a' is there 11 times; expected a different name"),
        ({"cam": Mine(), "common_mode": True}, ValueError, "reads the layers of a CAM, but cam is Mine"),
    ],
)
def test_wrong_options(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        explain(tmp_path / "out", **options)


def test_maps_of_different_sizes_are_refused(tmp_path):
    images = [torch.rand(3, 6, 5).double(), torch.rand(3, 8, 8).double()]
    with pytest.raises(ValueError, match=r"maps of one shard have shapes \[\(6, 5\), \(8, 8\)\]; expected one shape"):
        explain_dataset(CAM, DataLoader(images), tmp_path / "out", progress=False)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no run.json in .*; expected a folder that explain_dataset\("):
        open_explanations(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; expected a folder to write to"):
        explain(tmp_path / "file")


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"which is not installed; pip install safetensors$"):
        explain(tmp_path / "out")
    with pytest.raises(ImportError, match=r"which is not installed; pip install safetensors$"):
        open_explanations(tmp_path)


def test_the_index_is_written_only_when_nothing_is_missing(tmp_path):
    explain(tmp_path / "out")
    (tmp_path / "out/index.jsonl").unlink()
    (tmp_path / "out/rows-000001.jsonl").rename(tmp_path / "kept")
    found = Explanations(tmp_path / "out")
    store.write_index(found, 0)
    assert not (tmp_path / "out/index.jsonl").exists()
    assert found.missing == 4
    assert list(found) == [0, 1, 2, 3, 8, 9, 10]
