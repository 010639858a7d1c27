"""Tests that take long beside what they add to the others: ``make test-all`` runs them, ``make test`` does not.

A name with brackets is one case of a test; the test has other cases, which ``make test`` runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

SLOW = {
    "test_attacks.py": [
        *("test_every_configuration_runs[a_little_is_enough]", "test_every_configuration_runs[free_rider]"),
        *("test_every_configuration_runs[gaussian]", "test_every_configuration_runs[inner_product]"),
        *("test_every_configuration_runs[scaling]", "test_every_configuration_runs[claims_widest]"),
    ],
    "test_benchmarks.py": [
        "test_the_accuracy_under_an_attack_is_measured[scaling]",
        "test_the_accuracy_under_an_attack_is_measured[a little is enough]",
        "test_the_accuracy_under_an_attack_is_measured[label flip]",
    ],
    "test_cluster_penalty.py": [
        "test_feddyn_with_clusters_has_the_same_bits_in_workers_and_after_a_resume[clustered_fl]",
    ],
    "test_export_nets.py": [
        "test_nets_of_other_kinds_export_with_equal_outputs[running averages]",
        "test_every_precision_exports_with_equal_outputs[64-true-dtype0]",
    ],
    "test_fl_trust.py": ["test_two_hostile_clients_of_twelve_do_not_ruin_a_run"],
    "test_flower_bound.py": [
        "test_two_hostile_nodes_of_six_are_bounded_and_named[-5.5]",
        "test_two_hostile_nodes_of_six_are_bounded_and_named[1e+30]",
    ],
    "test_heap.py": ["test_malloc_settings_of_the_environment_are_kept[settings0]"],
    "test_measures.py": ["test_measures_notice_noise_on_digits"],
    "test_median_bound.py": ["test_two_of_twelve_hostile_clients_do_not_ruin_the_model"],
    "test_ranks.py": [
        f"test_ranks_give_the_same_bits_as_one_process[{case}]"
        for case in ("dynamic", "scored", "nefl", "valued", "ditto", "split_mix_robust", "learning", "fjord")
    ],
    "test_relatives.py": [
        f"test_a_resumed_run_ends_with_the_same_bits_and_is_exported[{method}]"
        for method in ("split_mix", "split_mix_robust", "scalefl", "ditto", "fjord")
    ],
    "test_round_schedules.py": [
        "test_a_run_resumed_with_clients_under_way_has_the_same_bits[semi-synchronous]",
        "test_a_run_resumed_with_clients_under_way_has_the_same_bits[asynchronous]",
    ],
    "test_scored_channels.py": [
        "test_a_resumed_run_ends_with_the_same_bits[criterion0-3]",
        "test_a_resumed_run_ends_with_the_same_bits[criterion2-4]",
    ],
    "test_snapshots.py": ["test_every_subcommand_accepts_the_configuration_of_a_run_with_snapshots"],
    "test_stacking.py": [
        "test_selection_files_stack_with_clustering_and_fleet_files[by_value-clustered_fl-csv]",
        "test_selection_files_stack_with_clustering_and_fleet_files[q_ffl-clustered_fl-csv]",
        "test_selection_files_stack_with_clustering_and_fleet_files[loss_times_size-clustered_fl-mixed]",
        "test_method_files_stack_with_clustering_files[fedmp-ifca]",
        "test_method_files_stack_with_clustering_files[fedrolex-ifca]",
        "test_method_files_stack_with_clustering_files[fedprox-clustered_fl]",
        "test_method_files_stack_with_clustering_files[complement_sparsification-clustered_fl]",
        "test_assignment_files_stack_on_a_fleet_file[equal_time]",
        "test_assignment_files_stack_on_a_fleet_file[eucb]",
        "test_assignment_files_stack_on_a_fleet_file[growing]",
    ],
    "test_text_runs.py": ["test_a_language_model_by_width_and_depth_resumes_with_the_same_bits"],
    "test_unlearn_command.py": [
        "test_the_first_round_has_the_cost_of_asking_all_clients",
        "test_the_new_run_is_resumed_and_unlearns_another_class",
    ],
}
"""By file, the tests or their cases."""


def mark_slow(items: Sequence[pytest.Item], arguments: Sequence[str]) -> None:
    """Mark the collected tests among them as slow.

    Args:
        items: the collected tests.
        arguments: files, folders and single tests that were asked for.

    Raises:
        pytest.UsageError: a file was collected that lacks one of its tests here.
    """
    for item in items:
        if item.name in SLOW.get(item.path.name, ()):
            item.add_marker("slow")
    if any("::" in argument for argument in arguments):
        return
    names = {(item.path.name, item.name) for item in items}
    for file in {item.path.name for item in items} & SLOW.keys():
        if missing := [name for name in SLOW[file] if (file, name) not in names]:
            raise pytest.UsageError(f"Expected the tests of tests/slow_cases.py in {file} but got no {missing[0]}")
