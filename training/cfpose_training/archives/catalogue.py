"""The public files of the paper's recipes: source, size, hash where one is published, licence.

A file without a stable address is got by hand; how, and how it is recognised, stands here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cfpose_bench.data.download import COCO_HOST

OPENMMLAB = "https://download.openmmlab.com"
CROWDPOSE_PAGE = "the repository CrowdPose of Jeff-sjtu on GitHub (its README links Google Drive)"
HRNET_PAGE = (
    "the repository deep-high-resolution-net.pytorch of leoxiaobin on GitHub (its README links "
    "OneDrive and Google Drive)"
)


@dataclass(frozen=True)
class PublicFile:
    """One file of a publisher, or one that is got by hand, and what of it lies in a data root."""

    what: str
    targets: tuple[str, ...]  # files and folders below the data root: there when all is done
    url: str = ""  # "": no stable address
    size: int | None = None  # bytes; None: not published, the server's is taken
    sha256: str = ""  # whole, or its first digits where these are published; "": none is
    # of an archive: pattern of its members -> folder below the data root; {}: the file itself
    members: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""  # of a file without address: where to look
    entries: int | None = None  # of a JSON list, of the `images` of an object, or files in a folder

    @property
    def name(self) -> str:
        """Its file name at the publisher."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class FileSet:
    """What `data fetch NAME` brings."""

    notice: str  # licence, said before anything is fetched
    files: tuple[PublicFile, ...]


_CROWDPOSE_TAR = PublicFile(
    "CrowdPose's annotations as mmpose has them, and person boxes of YOLOv3",
    (
        "annotations/mmpose_crowdpose_trainval.json",
        "annotations/mmpose_crowdpose_test.json",
        "annotations/det_for_crowd_test_0.1_0.5.json",
    ),
    f"{OPENMMLAB}/mmpose/datasets/crowdpose_annotations.tar",
    members={"*mmpose_crowdpose_*.json": "annotations", "*det_for_crowd_*.json": "annotations"},
)


def _hrnet(width: int, digits: str) -> PublicFile:
    name = f"hrnet_w{width}-{digits}.pth"
    return PublicFile(
        f"HRNet-W{width} trained on ImageNet",
        (f"imagenet/{name}",),
        f"{OPENMMLAB}/mmpose/pretrain_models/{name}",
        sha256=digits,  # the name carries the first digits
    )


SETS: Mapping[str, FileSet] = {
    "coco": FileSet(
        "COCO 2017: annotations CC BY 4.0 (COCO Consortium); the photos are their photographers', "
        "under the Flickr licences that the annotation files name. See "
        "https://cocodataset.org/#termsofuse",
        (
            PublicFile(
                "COCO's keypoint annotations",
                (
                    "annotations/person_keypoints_train2017.json",
                    "annotations/person_keypoints_val2017.json",
                ),
                f"{COCO_HOST}/annotations/annotations_trainval2017.zip",
                252_907_541,
                "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                {"annotations/person_keypoints_*2017.json": "annotations"},
            ),
            PublicFile(
                "photos of val2017",
                ("val2017",),
                f"{COCO_HOST}/zips/val2017.zip",
                815_585_330,
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                {"val2017/*.jpg": "val2017"},
                entries=5_000,
            ),
            PublicFile(
                "photos of train2017",
                ("train2017",),
                f"{COCO_HOST}/zips/train2017.zip",
                19_336_861_798,
                "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                {"train2017/*.jpg": "train2017"},
                entries=118_287,
            ),
        ),
    ),
    "crowdpose": FileSet(
        "CrowdPose: its repository names no licence of the photos, which are of MS COCO, MPII and "
        "AI Challenger; take it as data for research",
        (
            _CROWDPOSE_TAR,
            PublicFile(
                "CrowdPose's photos, images.zip, 20,000 of them",
                ("images",),
                origin=f"{CROWDPOSE_PAGE}; unpack it so that DATA/images/100000.jpg is there",
                entries=20_000,
            ),
        ),
    ),
    "boxes": FileSet(
        "person boxes: published with HRNet (code MIT) and mmpose (code Apache-2.0); no licence of "
        "the boxes themselves is named",
        (
            PublicFile(
                "boxes on COCO val2017, of a detector of 56.4 AP on people, 104,125 of them",
                ("person_detection_results/COCO_val2017_detections_AP_H_56_person.json",),
                origin=f"{HRNET_PAGE}, the folder person_detection_results",
                entries=104_125,
            ),
            _CROWDPOSE_TAR,
        ),
    ),
    "imagenet-hrnet": FileSet(
        "HRNet's weights: code MIT (Microsoft); trained on ImageNet, whose terms are for "
        "non-commercial research",
        (_hrnet(32, "36af842e"), _hrnet(48, "8ef0771d")),
    ),
}
