// SPDX-License-Identifier: Apache-2.0
// metrics.jsonl: one line a logged step, and none twice after a run was killed and resumed.
#include "core/base/file.h"
#include <jansson.h>

#include "core/base/log.h"
#include "tests/ts_test.h"
#include "train/report.h"

static void report_steps(const char *folder, int64_t done, int64_t last) {
    ts_report *report = NULL;
    CHECK_OK(ts_report_open(
        &report, &(ts_report_params){.folder = folder, .steps = 100, .done = done, .every = 2, .peak = 1e9}));
    for (int64_t step = done + 1; step <= last; step++) {
        const ts_step_result result = {.loss = (double)step, .lr = 0.1, .grad_norm = 1, .tokens = 10, .flops = 1e6};
        CHECK_OK(ts_report_step(report, step, &result, 0.01, 0.001));
    }
    const double level[2] = {0.5, 1.5};
    // The last validation of a run also has its patterns; one that was not measured is not told of.
    const bool patterns = done > 0;
    const ts_validation_result validation = {
        .levels = 2,
        .level_loss = level,
        .loss = 1.0,
        .constant = 2.0,
        .share = 0.5,
        .pattern = {[TS_PATTERN_ALL] = {true, 0.75, 1.0, 0.5}, [TS_PATTERN_PREFIX] = {patterns, 0.25, 0.5, 0.25}}};
    CHECK_OK(ts_report_validation(report, last, &validation));
    ts_report_close(&report);
}

int main(void) {
    ts_log_set_level(TS_LOG_WARN);
    char folder[] = "/tmp/tessera-report-XXXXXX", path[64], *text = NULL;
    size_t bytes = 0;
    CHECK(mkdtemp(folder));
    report_steps(folder, 0, 10);
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    FILE *file = fopen(path, "a");
    fputs("{\"step\":11,\"lo", file);  // a kill in the middle of a line
    fclose(file);
    report_steps(folder, 4, 8);  // the checkpoint was after step 4

    CHECK_OK(ts_file_read(path, 1 << 20, &text, &bytes));
    int64_t expected = 2, validations = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *value = json_loads(line, 0, NULL);
        CHECK(value);
        if (json_object_get(value, "validation")) {
            validations++;
            const json_t *validation = json_object_get(value, "validation");
            const json_t *patterns = json_object_get(validation, "patterns");
            CHECK_NEAR(json_real_value(json_object_get(validation, "share")), 0.5, 0);
            CHECK(json_object_size(patterns) == 2);
            CHECK_NEAR(json_real_value(json_object_get(json_object_get(patterns, "all"), "share")), 0.5, 0);
            CHECK_NEAR(json_real_value(json_object_get(json_object_get(patterns, "prefix"), "loss")), 0.5, 0);
            CHECK_NEAR(json_real_value(json_object_get(json_object_get(patterns, "prefix"), "share")), 0.25, 0);
        } else {
            CHECK(json_integer_value(json_object_get(value, "step")) == expected);
            // The mean over the steps since the last line.
            CHECK_NEAR(json_real_value(json_object_get(value, "loss")), (double)expected - 0.5, 1e-9);
            CHECK_NEAR(json_real_value(json_object_get(value, "peak_share")), 0.1, 1e-9);
            CHECK_NEAR(json_real_value(json_object_get(value, "loader_wait_share")), 0.1, 1e-9);
            expected += 2;
        }
        json_decref(value);
    }
    CHECK(expected == 10 && validations == 1);
    free(text);
    // Without a report nothing happens.
    CHECK_OK(ts_report_step(NULL, 1, NULL, 0, 0));
    CHECK_OK(ts_folder_remove(folder));
    return ts_test_end();
}
