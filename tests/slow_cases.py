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
    "test_auto.py": ["test_a_resumed_run_keeps_the_chosen_executor"],
    "test_benchmarks.py": [
        "test_the_accuracy_under_an_attack_is_measured[scaling]",
        "test_upload_is_checked_and_timed[0.1]",
        "test_the_accuracy_under_an_attack_is_measured[a little is enough]",
        "test_the_accuracy_under_an_attack_is_measured[label flip]",
    ],
    "test_blocks.py": [
        "test_written_values_are_read_back_at_every_index[by tensor]",
    ],
    "test_budget.py": [
        f"test_uploads_meet_the_budget_within_two_percent[{case}]"
        for case in ("constant", "1/t", "all take part", "a fifth is lost")
    ],
    "test_cli.py": [
        "test_the_configuration_of_a_resumed_run_starts_a_new_run",
        "test_base_method_and_data_files_are_enough_for_a_run",
        "test_a_signal_stops_the_run_at_a_round_end_with_a_checkpoint[15-SIGTERM]",
    ],
    "test_cli_errors.py": [
        f"test_user_errors_are_reported_in_one_line_with_status_2[{case}]"
        for case in (
            *("nothing for a number of a group", "null for a number", "no such checkpoint", "checkpoint empty"),
            *("strategy", "precision of half", "root below a file", "half a batch", "negative seed of the model"),
        )
    ],
    "test_cluster_penalty.py": [
        "test_feddyn_with_clusters_has_the_same_bits_in_workers_and_after_a_resume[clustered_fl]",
    ],
    "test_cluster_plots.py": ["test_every_clustering_file_stacks_on_the_experiment[ifca]"],
    "test_cluster_runs.py": [
        "test_a_resumed_run_ends_with_the_same_bits_including_splits[shared]",
        "test_workers_equal_sequential_with_clusters[clustered_fl]",
    ],
    "test_compressor_files.py": ["test_every_compressor_file_runs_and_saves_bytes[none]"],
    "test_configs.py": [
        f"test_every_method_runs[method/{method}]"
        for method in (
            *("all_large", "all_small", "exclusive", "fedavg", "federated_dropout", "fedgmr", "fedmp", "fedopt"),
            *("fedpaq", "fedper", "fedprox", "fedrolex", "fedrts", "fedsparsify", "fedsparsify_majority", "fedspa"),
            *("fiarse", "flash", "flash_jmwst", "heterofl", "inclusivefl", "lg_fedavg", "split_mix_robust"),
            *("sub_fedavg", "sub_fedavg_hybrid", "syn_fl", "up_fl"),
        )
    ],
    "test_default_executor.py": ["test_a_resumed_run_has_the_groups_of_its_beginning"],
    "test_deleted_folder.py": ["test_a_run_whose_folder_was_deleted_can_be_resumed"],
    "test_edited_weights.py": [
        f"test_a_test_after_an_edit_gathers_statistics_again[{edit}]" for edit in ("scaled", "from_numpy")
    ],
    "test_entrywise.py": ["test_a_resumed_run_has_the_same_bits[TrimmedMean]"],
    "test_evaluation_in_workers.py": [
        f"test_workers_measure_the_scores_of_one_process[{case}]" for case in ("heads", "rolling windows", "adapters")
    ],
    "test_executor_files.py": ["test_every_executor_file_runs[workers]"],
    "test_export_cli.py": [
        f"test_wrong_arguments_are_reported_in_one_line[{case}]" for case in ("former format", "no format")
    ],
    "test_export_nets.py": [
        "test_nets_of_other_kinds_export_with_equal_outputs[running averages]",
        "test_every_precision_exports_with_equal_outputs[64-true-dtype0]",
    ],
    "test_finishing.py": [
        "test_a_finished_run_with_changed_settings_continues_or_is_refused",
        "test_an_early_stopped_run_is_completed_without_another_round",
    ],
    "test_fl_trust.py": ["test_two_hostile_clients_of_twelve_do_not_ruin_a_run"],
    "test_fleet.py": [
        "test_the_fleet_benchmark_checks_and_times_its_bookkeeping",
    ],
    "test_flower_bound.py": [
        "test_two_hostile_nodes_of_six_are_bounded_and_named[10.0]",
        "test_two_hostile_nodes_of_six_are_bounded_and_named[-5.5]",
        "test_two_hostile_nodes_of_six_are_bounded_and_named[1e+30]",
    ],
    "test_flower_faults.py": [
        *(
            f"test_a_lying_node_does_not_change_the_model[{lie}]"
            for lie in ("a weight of 0", "more passes", "a replay", "another level's size", "half a message")
        ),
        *(f"test_a_non_finite_loss_is_refused_and_its_client_is_not_selected[{loss}]" for loss in ("inf", "-inf")),
        "test_false_statistics_are_left_out[more passes]",
    ],
    "test_flower_limits.py": [
        f"test_needs_are_those_of_the_messages_of_the_first_round[{case}]" for case in ("dense", "preinstalled base")
    ],
    "test_flower_round.py": [
        f"test_nodes_give_the_same_bits_as_one_process[{case}]"
        for case in (
            *("low rank in float64", "rolling windows and personal heads", "coded downloads of models that share"),
            *("the best channels and a mean over the cohort", "pruning by magnitude", "complements of coded masks"),
            *("stragglers without error feedback", "losses asked for, everything sent", "masks and hooks"),
            "coded downloads, rotated, of masks",
        )
    ],
    "test_going_on.py": [
        f"test_a_changed_learning_rate_scales_the_rest_of_the_schedule[{schedule}]"
        for schedule in ("step", "lambda", "sequential")
    ],
    "test_gpu_benchmark.py": [
        "test_executors_are_timed_beside_the_plain_loop_with_equal_deltas",
        "test_the_checks_run_on_the_cpu",
    ],
    "test_heap.py": ["test_malloc_settings_of_the_environment_are_kept[settings0]"],
    "test_hostile_parts.py": [
        "test_a_huge_update_is_reported_by_client_and_the_run_continues[1e+30-mean]",
        "test_a_huge_update_is_reported_by_client_and_the_run_continues[1000000000000000.0-q-FedAvg]",
    ],
    "test_init.py": ["test_options_choose_method_levels_and_compressor[options1-expected1]"],
    "test_lora_export.py": ["test_the_command_exports_both"],
    "test_lora_runs.py": [f"test_executors_agree[<lambda>-<lambda>{number}]" for number in (0, 1)],
    "test_mask_methods.py": ["test_pruning_by_a_threshold_equals_numpy[once]"],
    "test_mask_runs.py": [
        f"test_a_resumed_run_ends_with_the_same_bits[{rule}]"
        for rule in (
            *("taylor", "movement", "complement", "random", "server", "personal", "flash", "jmwst", "candidates"),
            *("threshold", "voted", "hybrid", "own"),
        )
    ],
    "test_measures.py": ["test_measures_notice_noise_on_digits"],
    "test_median_bound.py": ["test_two_of_twelve_hostile_clients_do_not_ruin_the_model"],
    "test_momentum_distillation.py": ["test_it_is_resumed_with_the_same_bits"],
    "test_mutants.py": [
        "test_a_bug_is_tried_only_with_the_tests_of_its_function",
    ],
    "test_objective_runs.py": [
        "test_a_run_learns_logs_its_headline_and_resumes_with_the_same_bits[labels]",
        "test_executors_give_equal_results[numbers]",
    ],
    "test_pieces.py": ["test_state_of_a_users_piece_resumes_with_the_same_bits[slow]"],
    "test_pruned_channels.py": [
        f"test_pruned_entries_stay_zero_and_all_others_train[{case}]"
        for case in ("FedAvg-Stacked", "HeteroFL-Sequential")
    ],
    "test_q_fedavg.py": [f"test_every_scalar_equals_the_papers_formula[{q}]" for q in ("0.5", "5.0")],
    "test_ranks.py": [
        f"test_ranks_give_the_same_bits_as_one_process[{case}]"
        for case in (
            *("dynamic", "scored", "nefl", "valued", "ditto", "split_mix_robust", "learning", "fjord"),
            *("exchanging", "adapters", "clustered"),
        )
    ],
    "test_reference_clusters.py": [
        "test_ifca_with_shared_layers_and_feddyn_equals_the_reference[False]",
    ],
    "test_reference_parts.py": [
        f"test_heterofl_with_other_part_rules_equals_the_reference[{rule}]"
        for rule in ("RandomChannels", "SparseChannels")
    ],
    "test_relatives.py": [
        f"test_a_resumed_run_ends_with_the_same_bits_and_is_exported[{method}]"
        for method in ("split_mix", "split_mix_robust", "scalefl", "ditto", "fjord")
    ],
    "test_reuse.py": [
        "test_counters_dropout_and_precision_give_the_same_bits_for_any_number_of_workers[small_net-bf16-mixed]",
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
        for policy in ("uniform", "size_weighted", "loss_times_size", "rpow", "exclusive")
    ],
    "test_several_tasks.py": ["test_two_models_equal_the_models_of_two_runs[<lambda>1]"],
    "test_shapley.py": ["test_a_resumed_run_has_the_same_values[LeaveOneOut]"],
    "test_snapshots.py": ["test_every_subcommand_accepts_the_configuration_of_a_run_with_snapshots"],
    "test_stacking.py": [
        "test_assignment_files_stack_on_a_fleet_file[discounted_ucb]",
        "test_method_files_stack_with_clustering_files[depthfl-ifca]",
        "test_schedule_files_stack_on_methods_and_a_fleet_file[fedrolex-semi_synchronous]",
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
    "test_trackers.py": [
        "test_figures_are_drawn_while_a_run_trains",
    ],
    "test_trees.py": ["test_a_federation_on_tree_inputs_learns_and_resumes_with_the_same_bits[tuple]"],
    "test_unlearn_command.py": [
        "test_wrong_values_are_refused[options6-Expected the run's name to be the name of one folder but got 'a/b']",
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
