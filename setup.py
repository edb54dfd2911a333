# SPDX-License-Identifier: Apache-2.0
"""What pip installs. The tested versions of everything named here stand in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

INSTALL_REQUIRES = [
    "torch>=2.8",  # as monai 1.6 asks
    "monai>=1.6,<1.7",
    "transformers>=5.20,<6",
    "tokenizers>=0.22",
    "diffusers>=0.41,<0.43",
    "pytorch-lightning>=2.6,<3",
    "pytorch-ignite>=0.5.3,<0.6",
    "nibabel>=5.3",
    "safetensors>=0.5",
    "huggingface_hub>=1.5",
    "pydicom>=3.0.1,<4",
    "pillow>=11",
    "pyyaml>=6.0",
    "numpy>=2.0",
    "einops>=0.8",  # MONAI's attention blocks
    "tqdm>=4.66",
]

# Only what a plain pip can install, and nothing under the GPL.
EXTRAS = {
    "demo": ["nilearn>=0.12", "pydicom-data==1.0.0", "scikit-image>=0.25", "scipy>=1.14", "tifffile>=2025.1"],
    "test": [
        "pytest>=9",
        "hypothesis>=6.140",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "ipykernel>=6.30",
        "matplotlib>=3.9",
        "jsonschema>=4.23",
        "fire>=0.7",
        "httpx>=0.28",
        "openai>=2",
        "schemathesis>=4",
        "playwright>=1.55",
        "mlcroissant>=1.0",
        "highdicom>=0.27,<0.29",
        "SimpleITK>=2.4",
        "duckdb>=1.4",
        "build>=1.2",
        "setuptools>=77",
        "ruff>=0.14",
        "mypy>=1.18",
        "pre-commit>=4",
    ],
    "train": [
        "peft>=0.20",
        "accelerate>=1.10",
        "torchmetrics>=1.8",
        "torchdata>=0.11,<0.12",
        "tensorboard>=2.20",
    ],
    "data": [
        "pyarrow>=22",
        "datasets>=5,<6",
        "imagehash>=4.3",
        "datasketch>=2",  # others hash words otherwise
        "jinja2>=3.1",
        "tifffile>=2025.1",
        "scikit-image>=0.25",
        "scikit-learn>=1.6",  # agreement of readers
        "pynrrd>=1.1",
    ],
    "near": ["faiss-cpu>=1.11"],  # near-duplicates by the vectors of a model
    "dicom": ["highdicom>=0.27,<0.29", "pylibjpeg>=2.1", "pylibjpeg-openjpeg>=2.5"],
    "dicom-gdcm": ["python-gdcm>=3.2"],  # lossless JPEG
    "wsi": ["openslide-python>=1.4", "openslide-bin>=4", "tifffile>=2025.1"],
    "video": ["av>=14"],
    "ray": ["ray[data]>=2.50,<3"],
    "eval": [
        "pyarrow>=22",
        "sacrebleu>=2.5",
        "rouge-score>=0.1.2",
        "nltk>=3.10",
        "scipy>=1.14",
        "scikit-learn>=1.6",
        "torchmetrics>=1.8",
    ],
    "serve": [
        "fastapi>=0.132",
        "starlette>=0.49",
        "pydantic>=2.12",
        "uvicorn>=0.38",
        "prometheus-client>=0.22",
        "python-multipart>=0.0.20",
    ],
    "delivery": ["pynetdicom>=3.0", "dicomweb-client>=0.60", "requests>=2.32", "filelock>=3.12"],
    "bundle": ["fire>=0.7", "jsonschema>=4.23"],
    "quant": ["torchao>=0.18,<0.19"],
    "onnx": ["onnx>=1.19", "onnxscript>=0.6", "onnxruntime>=1.23"],
    "generative": ["monai-generative==0.2.3"],  # its last release; only to compare old checkpoints against
    "docs": ["nbclient>=0.10", "ipykernel>=6.30", "matplotlib>=3.9"],
}

# transforms/ and bundles/ hold no Python: they ride in the wheel as data, under the package.
RECIPES, BUNDLES = "monai_unimedvl.transforms.recipes", "monai_unimedvl.bundles"
BUNDLE_FILES = ["json", "safetensors", "md", "txt", "png", "nii.gz"]

setup(
    name="monai-unimedvl",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "monai_unimedvl/__init__.py").read_text("utf8"))[1],
    description="UniMedVL for MONAI: one model that reads and draws medical images and text",
    long_description=(ROOT / "README.md").read_text("utf8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Healthcare Industry",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
        "Typing :: Typed",
    ],
    packages=[*find_packages(include=["monai_unimedvl", "monai_unimedvl.*"]), RECIPES, BUNDLES],
    package_dir={RECIPES: "transforms", BUNDLES: "bundles"},
    package_data={
        "monai_unimedvl": [
            "py.typed", "data/*.json*", "data/templates/*", "data/pipelines/*", "label/*.txt", "serve/page/*",
            "networks/words/*",
        ],
        RECIPES: ["*.yaml", "*.md"],
        BUNDLES: [*(f"**/*.{end}" for end in BUNDLE_FILES), "**/LICENSE", "**/logging.conf"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["unimedvl = monai_unimedvl.cli:main"]},
)
