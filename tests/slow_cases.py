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
        "test_every_configuration_runs[sign_flip]",
    ],
    "test_assignment_runs.py": ["test_a_resumed_run_ends_with_the_same_bits[EUCB]"],
    "test_benchmarks.py": [
        "test_the_accuracy_under_an_attack_is_measured[scaling]",
        "test_the_accuracy_under_an_attack_is_measured[a little is enough]",
        "test_the_accuracy_under_an_attack_is_measured[label flip]",
    ],
    "test_cli.py": [
        "test_base_method_and_data_files_are_enough_for_a_run",
        "test_a_signal_stops_the_run_at_a_round_end_with_a_checkpoint[15-SIGTERM]",
    ],
    "test_cluster_penalty.py": [
        "test_feddyn_with_clusters_has_the_same_bits_in_workers_and_after_a_resume[clustered_fl]",
    ],
    "test_cluster_runs.py": [
        "test_a_resumed_run_ends_with_the_same_bits_including_splits[shared]",
        "test_workers_equal_sequential_with_clusters[clustered_fl]",
    ],
    "test_compressor_files.py": ["test_every_compressor_file_runs_and_saves_bytes[none]"],
    "test_configs.py": [
        f"test_every_method_runs[method/{method}]"
        for method in ("all_large", "fedprox", "fedsparsify_majority", "flash_jmwst", "fedopt", "fedspa")
    ],
    "test_entrywise.py": ["test_a_resumed_run_has_the_same_bits[TrimmedMean]"],
    "test_executor_files.py": ["test_every_executor_file_runs[workers]"],
    "test_export_cli.py": [
        f"test_wrong_arguments_are_reported_in_one_line[{case}]" for case in ("former format", "no format")
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
    "test_flower_round.py": [
        f"test_nodes_give_the_same_bits_as_one_process[{case}]"
        for case in (
            *("low rank in float64", "rolling windows and personal heads", "coded downloads of models that share"),
            *("the best channels and a mean over the cohort", "pruning by magnitude", "complements of coded masks"),
        )
    ],
    "test_going_on.py": [
        f"test_a_changed_learning_rate_scales_the_rest_of_the_schedule[{schedule}]" for schedule in ("step", "lambda")
    ],
    "test_heap.py": ["test_malloc_settings_of_the_environment_are_kept[settings0]"],
    "test_init.py": ["test_options_choose_method_levels_and_compressor[options1-expected1]"],
    "test_lora_runs.py": [f"test_executors_agree[<lambda>-<lambda>{number}]" for number in (0, 1)],
    "test_mask_runs.py": [
        f"test_a_resumed_run_ends_with_the_same_bits[{rule}]"
        for rule in ("taylor", "movement", "complement", "random", "server", "personal", "flash")
    ],
    "test_measures.py": ["test_measures_notice_noise_on_digits"],
    "test_median_bound.py": ["test_two_of_twelve_hostile_clients_do_not_ruin_the_model"],
    "test_ranks.py": [
        f"test_ranks_give_the_same_bits_as_one_process[{case}]"
        for case in (
            *("dynamic", "scored", "nefl", "valued", "ditto", "split_mix_robust", "learning", "fjord"),
            *("exchanging", "adapters"),
        )
    ],
    "test_reference_parts.py": ["test_heterofl_with_other_part_rules_equals_the_reference[RandomChannels]"],
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
    "test_selection_runs.py": [
        f"test_a_resumed_run_selects_and_ends_like_an_uninterrupted_run[{policy}]"
        for policy in ("uniform", "size_weighted", "loss_times_size")
    ],
    "test_several_tasks.py": ["test_two_models_equal_the_models_of_two_runs[<lambda>1]"],
    "test_shapley.py": ["test_a_resumed_run_has_the_same_values[LeaveOneOut]"],
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
        "test_assignment_files_stack_on_a_fleet_file[growing_on_plateau]",
        "test_assignment_files_stack_on_a_fleet_file[one_for_all]",
        "test_method_files_stack_with_clustering_files[feddst-clustered_fl]",
        "test_method_files_stack_with_clustering_files[fedper-ifca]",
        "test_schedule_files_stack_on_methods_and_a_fleet_file[fedrolex-asynchronous]",
        "test_schedule_files_stack_on_methods_and_a_fleet_file[fedrolex-buffered]",
        "test_schedule_files_stack_on_methods_and_a_fleet_file[fedper-semi_synchronous]",
    ],
    "test_text_runs.py": ["test_a_language_model_by_width_and_depth_resumes_with_the_same_bits"],
    "test_unlearn_command.py": [
        "test_the_first_round_has_the_cost_of_asking_all_clients",
        "test_the_new_run_is_resumed_and_unlearns_another_class",
        "test_wrong_values_are_refused[options2-Expected --class from 0 to 9 but got -1]",
        "test_wrong_values_are_refused[options5-Expected --rounds of at least 1 but got 0]",
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
