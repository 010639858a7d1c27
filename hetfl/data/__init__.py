"""Data sets and their partition over the clients."""

from hetfl.data.arrays import Arrays, ClientData, Samples
from hetfl.data.cifar import CIFAR10, CIFAR100
from hetfl.data.client_transform import ClientTransform
from hetfl.data.csv_data import CSVData
from hetfl.data.dataset_data import DatasetData
from hetfl.data.diabetes import Diabetes
from hetfl.data.digits import Digits
from hetfl.data.dirichlet import Dirichlet
from hetfl.data.feature_noise import FeatureNoise
from hetfl.data.flower import FlowerPartitioner
from hetfl.data.huggingface import HuggingFaceData
from hetfl.data.image_folder import ImageFolder
from hetfl.data.label_noise import LabelNoise
from hetfl.data.loaders import EvalBatch
from hetfl.data.markov_text import MarkovText
from hetfl.data.matched import matched_partition
from hetfl.data.mix import class_mix, client_table, divergence
from hetfl.data.mnist import MNIST, FashionMNIST
from hetfl.data.module import FederatedDataModule
from hetfl.data.partition import IID, NaturalIds, Partitioner
from hetfl.data.pathological import PathologicalLabels
from hetfl.data.quantity_skew import QuantitySkew
from hetfl.data.rotation_groups import RotationGroups
from hetfl.data.shards import LabelShards
from hetfl.data.tensor_data import TensorData
from hetfl.data.text_file import TextFile
from hetfl.data.text_table import TextTable
from hetfl.data.token_rows import TokenRows
from hetfl.data.transform import ImageTransform, Plain, Transform
from hetfl.data.wikitext2 import WikiText2

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "IID",
    "MNIST",
    "Arrays",
    "CSVData",
    "ClientData",
    "ClientTransform",
    "DatasetData",
    "Diabetes",
    "Digits",
    "Dirichlet",
    "EvalBatch",
    "FashionMNIST",
    "FeatureNoise",
    "FederatedDataModule",
    "FlowerPartitioner",
    "HuggingFaceData",
    "ImageFolder",
    "ImageTransform",
    "LabelNoise",
    "LabelShards",
    "MarkovText",
    "NaturalIds",
    "Partitioner",
    "PathologicalLabels",
    "Plain",
    "QuantitySkew",
    "RotationGroups",
    "Samples",
    "TensorData",
    "TextFile",
    "TextTable",
    "TokenRows",
    "Transform",
    "WikiText2",
    "class_mix",
    "client_table",
    "divergence",
    "matched_partition",
]
