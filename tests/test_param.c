// SPDX-License-Identifier: Apache-2.0
// Parameters cut over an imagined tensor axis: parts and their pieces cover the whole, fresh values are slices of the
// whole's, spans cover the flat arrays in order.
#include "core/nn/param.h"

#include <stdlib.h>

#include "tests/ts_test.h"

enum { ROWS = 12, COLUMNS = 20, UNIT = 4, BLOCKS = 3 };

typedef struct set {
    ts_mesh mesh;
    ts_params *params;
    ts_param *rows, *columns, *whole, *vector;
} set;

static void open_set(set *s, int ranks, int rank) {
    const ts_shape matrix = TS_SHAPE(ROWS, COLUMNS);
    CHECK_OK(ts_mesh_imagine(&s->mesh, &(ts_degrees){1, 1, 1, 1, ranks}, rank));
    CHECK_OK(ts_params_open(&s->params));
    s->params->mesh = &s->mesh;
    CHECK_OK(ts_params_declare(&s->vector, s->params, "", "vector", TS_SHAPE(7), false));
    for (int block = 0; block < BLOCKS; block++) {
        char prefix[16];
        snprintf(prefix, sizeof prefix, "%d.", block);
        CHECK(ts_params_begin_group(s->params) == 1 + block);
        CHECK_OK(
            ts_params_declare_as(&s->rows, s->params, prefix, "rows", &(ts_declaration){matrix, true, true, 0, UNIT}));
        CHECK_OK(ts_params_declare(&s->vector, s->params, prefix, "vector", TS_SHAPE(5), false));
        CHECK_OK(ts_params_declare_as(&s->columns, s->params, prefix, "columns",
                                      &(ts_declaration){matrix, true, true, 1, UNIT}));
        ts_params_end_group(s->params);
    }
    CHECK_OK(ts_params_declare_as(&s->whole, s->params, "", "whole", &(ts_declaration){matrix, true, true, -1, 0}));
    CHECK_OK(ts_params_allocate(s->params, TS_F32, false));
}

static void close_set(set *s) {
    ts_params_close(&s->params);
    ts_mesh_close(&s->mesh);
}

static void check_spans(const ts_params *params) {
    int64_t end = 0;
    for (int i = 0; i < params->spans; i++) {
        CHECK(params->span[i].first == end && params->span[i].count >= 0);
        end += params->span[i].count;
    }
    CHECK(end == params->total);
    for (int64_t i = 0; i < params->count; i++) {
        const ts_param *param = params->item[i];
        CHECK(i == 0 || param->offset >= params->item[i - 1]->offset + params->item[i - 1]->count);
        CHECK(ts_params_find(params, param->name) == param);
        for (int s = 0; param->count > 0 && s < params->spans; s++) {
            const ts_span *span = &params->span[s];
            const bool inside = param->offset >= span->first && param->offset < span->first + span->count;
            const bool alike =
                span->group == param->group && span->cut == (param->cut >= 0) && span->is_operand == param->is_operand;
            CHECK(inside == alike);
        }
    }
}

// Adds one to every element of the whole tensor that local range [first, end) covers, and compares values.
static void cover(const ts_param *part, const ts_param *whole, int64_t first, int64_t end, int *covered) {
    ts_piece piece[TS_MAX_PIECES];
    const int pieces = ts_param_pieces(part, first, end - first, piece);
    int64_t at = first;
    for (int i = 0; i < pieces; i++) {
        for (int64_t run = 0; run < piece[i].runs; run++) {
            for (int64_t j = 0; j < piece[i].length; j++, at++) {
                const int64_t element = piece[i].first + run * piece[i].stride + j;
                CHECK(element >= 0 && element < ROWS * COLUMNS);
                covered[element]++;
                CHECK(part->value[at] == whole->value[element]);
            }
        }
    }
    CHECK(at == end);
}

static void check_cut(int ranks) {
    set lone;
    int covered[2][ROWS * COLUMNS] = {{0}};
    open_set(&lone, 1, 0);
    check_spans(lone.params);
    ts_param_init_normal(lone.rows, 3, 0.5f);
    ts_param_init_normal(lone.columns, 3, 0.5f);
    CHECK(lone.rows->cut == -1 && lone.params->spans == 2 + 2 * BLOCKS);
    for (int rank = 0; rank < ranks; rank++) {
        set s;
        open_set(&s, ranks, rank);
        check_spans(s.params);
        ts_param_init_normal(s.rows, 3, 0.5f);
        ts_param_init_normal(s.columns, 3, 0.5f);
        CHECK(s.whole->cut == -1 && s.whole->count == ROWS * COLUMNS);
        CHECK(s.rows->shape.dim[0] % UNIT == 0 && s.rows->shape.dim[1] == COLUMNS);
        // In three uneven ranges, as a sharded optimizer would hold them.
        const ts_param *part[] = {s.rows, s.columns}, *whole[] = {lone.rows, lone.columns};
        for (int i = 0; i < 2; i++) {
            const int64_t n = part[i]->count, cuts[] = {0, n / 5, n / 2 + 1 < n ? n / 2 + 1 : n, n};
            for (int c = 0; c < 3; c++) {
                cover(part[i], whole[i], cuts[c], cuts[c + 1], covered[i]);
            }
        }
        close_set(&s);
    }
    for (int i = 0; i < ROWS * COLUMNS; i++) {
        CHECK(covered[0][i] == 1 && covered[1][i] == 1);
    }
    close_set(&lone);
}

int main(void) {
    for (int ranks = 2; ranks <= 7; ranks++) {
        check_cut(ranks);
    }
    return ts_test_end();
}
