"""What a client's data and updates are worth: measures, one per file."""

from hetfl.value.base import Measures, Value, finite, values_of_round
from hetfl.value.beta_reputation import BetaReputation
from hetfl.value.coalitions import CoalitionValue, LeaveOneOut
from hetfl.value.data_value import DataValue
from hetfl.value.feature_composite import FeatureComposite
from hetfl.value.feature_information import FeatureInformation
from hetfl.value.gradient_cosine import GradientCosine
from hetfl.value.gram_determinant import GramDeterminant
from hetfl.value.individual import Individual
from hetfl.value.label_information import LabelInformation
from hetfl.value.loss_drop import LossDrop
from hetfl.value.parameter_uncertainty import ParameterUncertainty
from hetfl.value.reputation import Reputation
from hetfl.value.shapley_value import Shapley
from hetfl.value.using import UsesValues

__all__ = [
    "BetaReputation",
    "CoalitionValue",
    "DataValue",
    "FeatureComposite",
    "FeatureInformation",
    "GradientCosine",
    "GramDeterminant",
    "Individual",
    "LabelInformation",
    "LeaveOneOut",
    "LossDrop",
    "Measures",
    "ParameterUncertainty",
    "Reputation",
    "Shapley",
    "UsesValues",
    "Value",
    "finite",
    "values_of_round",
]
