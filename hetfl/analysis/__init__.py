"""Tables and plots of runs: readers for run folders, snapshots during a run, and the analysis of sub-models."""

from hetfl.analysis.anatomy import LevelDrift, channel_norms
from hetfl.analysis.anatomy_plots import plot_channel_norms, plot_drift, plot_holders, plot_mean_holders
from hetfl.analysis.assignment_plots import draw_assignment, load_assignment, plot_drawn_levels
from hetfl.analysis.budget_plots import draw_budget, plot_budget
from hetfl.analysis.client_view import client_view, plot_client_view
from hetfl.analysis.cluster_plots import plot_assignments, plot_cluster_tree, plot_clusters
from hetfl.analysis.clusters import load_clusters
from hetfl.analysis.confusion import confusion, plot_confusion
from hetfl.analysis.data_plots import plot_labels
from hetfl.analysis.holders import holders, mean_holders
from hetfl.analysis.interpolation import loss_barrier, loss_path
from hetfl.analysis.part_maps import outside_zeroed, smallest_levels
from hetfl.analysis.plots import (
    plot_accuracy_over_bytes,
    plot_accuracy_over_rounds,
    plot_run,
    plot_score_over_bytes,
    plot_score_over_rounds,
)
from hetfl.analysis.quality import calibration_error, class_accuracy, reliability
from hetfl.analysis.quality_plots import plot_class_accuracy, plot_comparison, plot_predictions, plot_reliability
from hetfl.analysis.ranks import plot_spectra, singular_values, spectra
from hetfl.analysis.runs import Run, load_run
from hetfl.analysis.similarity import activations, head_agreement, level_similarity, linear_cka
from hetfl.analysis.similarity_plots import plot_heads, plot_level_similarity
from hetfl.analysis.snapshot_reader import RunSnapshots, Snapshot, load_snapshots
from hetfl.analysis.sparsity_plots import draw_sparsity, plot_sparsity, score_over_density
from hetfl.analysis.timeline_plots import draw_timeline, load_timeline, plot_timeline
from hetfl.analysis.traffic import layer_density, layer_residuals, load_residuals
from hetfl.analysis.traffic_plots import plot_layer_density, plot_residuals
from hetfl.analysis.values import late_values, load_client_data, load_values, rank_correlation, values_by_round
from hetfl.analysis.values_plots import draw_values, plot_values
from hetfl.analysis.weights import distance_to_last, weight_quantiles, weight_spectra
from hetfl.analysis.weights_plots import (
    plot_distance_to_last,
    plot_level_maps,
    plot_loss_paths,
    plot_weight_quantiles,
    plot_weight_spectra,
)
from hetfl.snapshots import Snapshots

__all__ = [
    "LevelDrift",
    "Run",
    "RunSnapshots",
    "Snapshot",
    "Snapshots",
    "activations",
    "calibration_error",
    "channel_norms",
    "class_accuracy",
    "client_view",
    "confusion",
    "distance_to_last",
    "draw_assignment",
    "draw_budget",
    "draw_sparsity",
    "draw_timeline",
    "draw_values",
    "head_agreement",
    "holders",
    "late_values",
    "layer_density",
    "layer_residuals",
    "level_similarity",
    "linear_cka",
    "load_assignment",
    "load_client_data",
    "load_clusters",
    "load_residuals",
    "load_run",
    "load_snapshots",
    "load_timeline",
    "load_values",
    "loss_barrier",
    "loss_path",
    "mean_holders",
    "outside_zeroed",
    "plot_accuracy_over_bytes",
    "plot_accuracy_over_rounds",
    "plot_assignments",
    "plot_budget",
    "plot_channel_norms",
    "plot_class_accuracy",
    "plot_client_view",
    "plot_cluster_tree",
    "plot_clusters",
    "plot_comparison",
    "plot_confusion",
    "plot_distance_to_last",
    "plot_drawn_levels",
    "plot_drift",
    "plot_heads",
    "plot_holders",
    "plot_labels",
    "plot_layer_density",
    "plot_level_maps",
    "plot_level_similarity",
    "plot_loss_paths",
    "plot_mean_holders",
    "plot_predictions",
    "plot_reliability",
    "plot_residuals",
    "plot_run",
    "plot_score_over_bytes",
    "plot_score_over_rounds",
    "plot_sparsity",
    "plot_spectra",
    "plot_timeline",
    "plot_values",
    "plot_weight_quantiles",
    "plot_weight_spectra",
    "rank_correlation",
    "reliability",
    "score_over_density",
    "singular_values",
    "smallest_levels",
    "spectra",
    "values_by_round",
    "weight_quantiles",
    "weight_spectra",
]
