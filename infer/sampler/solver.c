// SPDX-License-Identifier: Apache-2.0
#include "infer/sampler/solver.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

const char *const ts_solver_names[] = {"euler", "unipc", NULL};

// The sums of a step, in order. Each is taken with its own coefficients for every class.
enum { FORETELL, CORRECT, MOVE, SUMS };
typedef double coefficients[TS_MAX_TERMS];

struct ts_solver {
    ts_solver_kind kind;
    const ts_schedule *schedule;
    const ts_kernels *kernels;
    int64_t rows, width, classes;
    float *floor;           // [classes]
    int64_t *begin;         // [classes] the first step that moves the class; `steps` of a held one
    int64_t *known;         // [classes] the step from which on the past of a class is known
    int64_t next;           // step
    coefficients *c;        // [SUMS, classes] of the step under way
    double *device_c;       // the same in the device's memory; NULL with one class
    int32_t *device_class;  // [rows] or NULL with one class
    float *memory;          // [arrays, rows, width] of the device, for what follows
    float *x0[3];           // [rows, width] foretold now and, UniPC, one step ago, two steps ago
    float *start;           // [rows, width] UniPC: the corrected sample that the last predictor started from
};

static int arrays(ts_solver_kind kind) {
    return kind == TS_SOLVER_UNIPC ? TS_SOLVER_ARRAYS : 1;
}

// ---- opening

static int check_rows(const ts_solver_rows *rows) {
    if (rows->classes < 1) {
        return TS_FAIL(TS_EUSAGE, "a solver of %lld classes of rows; give one at least", (long long)rows->classes);
    }
    for (int64_t c = 0; c < rows->classes; c++) {
        if (!isfinite(rows->floor[c]) || rows->floor[c] < 0.0f) {
            return TS_FAIL(TS_EUSAGE, "a noise floor of %g; give a number of 0 or more", (double)rows->floor[c]);
        }
    }
    for (int64_t r = 0; rows->class_of && r < rows->rows; r++) {
        if (rows->class_of[r] < 0 || rows->class_of[r] >= rows->classes) {
            return TS_FAIL(TS_EUSAGE, "row %lld is of class %d, and there are %lld", (long long)r, rows->class_of[r],
                           (long long)rows->classes);
        }
    }
    return TS_OK;
}

static int allocate(ts_solver *s, const ts_solver_rows *rows) {
    const ts_device *device = s->kernels->device;
    const int64_t n = s->rows * s->width;
    s->floor = ts_malloc((size_t)s->classes * sizeof *s->floor);
    s->begin = ts_malloc((size_t)s->classes * sizeof *s->begin);
    s->known = ts_malloc((size_t)s->classes * sizeof *s->known);
    s->c = ts_calloc((size_t)(SUMS * s->classes), sizeof *s->c);
    const size_t memory_bytes = (size_t)arrays(s->kind) * (size_t)n * sizeof *s->memory;
    s->memory = device->allocate(memory_bytes);
    if (!s->floor || !s->begin || !s->known || !s->c || !s->memory) {
        return TS_ERESOURCE;
    }
    for (int k = 0; k < arrays(s->kind); k++) {
        *(k < 3 ? &s->x0[k] : &s->start) = s->memory + k * n;
    }
    TS_TRY(device->zero(s->memory, memory_bytes));  // a state saved early has the same bytes every time
    if (s->classes == 1) {
        return TS_OK;
    }
    s->device_c = device->allocate((size_t)(SUMS * s->classes) * sizeof *s->c);
    s->device_class = device->allocate((size_t)s->rows * sizeof *s->device_class);
    if (!s->device_c || !s->device_class) {
        return TS_ERESOURCE;
    }
    const size_t bytes = (size_t)s->rows * sizeof *s->device_class;
    return rows->class_of ? device->upload(s->device_class, rows->class_of, bytes)
                          : device->zero(s->device_class, bytes);
}

int ts_solver_open(ts_solver **out, ts_solver_kind kind, const ts_schedule *schedule, const ts_kernels *kernels,
                   const ts_solver_rows *rows) {
    TS_TRY(check_rows(rows));
    ts_solver *s = ts_calloc(1, sizeof *s);
    if (!s) {
        return TS_ERESOURCE;
    }
    *s = (ts_solver){.kind = kind, .schedule = schedule, .kernels = kernels};
    s->rows = rows->rows;
    s->width = rows->width;
    s->classes = rows->classes;
    const int status = allocate(s, rows);
    if (status) {
        ts_solver_close(&s);
        return status;
    }
    for (int64_t c = 0; c < s->classes; c++) {
        s->floor[c] = rows->floor[c];
        s->begin[c] = 0;
        while (s->begin[c] < schedule->steps && !(schedule->sigma[s->begin[c] + 1] < s->floor[c])) {
            s->begin[c]++;
        }
        s->known[c] = s->begin[c];
    }
    s->next = ts_solver_first_step(s);
    *out = s;
    return TS_OK;
}

void ts_solver_close(ts_solver **solver) {
    ts_solver *s = *solver;
    if (s) {
        s->kernels->device->release(s->device_class);
        s->kernels->device->release(s->device_c);
        s->kernels->device->release(s->memory);
        free(s->c);
        free(s->known);
        free(s->begin);
        free(s->floor);
        free(s);
        *solver = NULL;
    }
}

// ---- levels

float ts_solver_level(const ts_solver *s, int64_t step, int64_t class_index) {
    return fminf(s->schedule->sigma[step], s->floor[class_index]);
}

int64_t ts_solver_first_step(const ts_solver *s) {
    int64_t first = s->schedule->steps;
    for (int64_t c = 0; c < s->classes; c++) {
        first = s->begin[c] < first ? s->begin[c] : first;
    }
    return first;
}

// Half the log signal-to-noise ratio, lambda = ln(1 - level) - ln(level); +infinity at level 0.
static double log_snr(const ts_solver *s, int64_t step, int64_t class_index) {
    const double level = ts_solver_level(s, step, class_index);
    return log(1.0 - level) - log(level);
}

// The predictor's step from `step` on, in lambda.
static double stride(const ts_solver *s, int64_t step, int64_t class_index) {
    return log_snr(s, step + 1, class_index) - log_snr(s, step, class_index);
}

// Of the predictor of a step. A floor just above a level of the schedule makes a first step of almost no length; what
// changes in it comes from rows that went farther, and must not be taken for this row's slope.
static int order(const ts_solver *s, int64_t step, int64_t class_index) {
    const int64_t done = step - s->known[class_index];
    if (done == 1) {
        return stride(s, step - 1, class_index) >= 0.5 * stride(s, step, class_index) ? 2 : 1;
    }
    return done == 0 ? 1 : 2;
}

// ---- sums

// out = the sum of the terms, with the coefficients of sum `which`
static int combine(const ts_solver *s, int which, float *out, const float *const *x, int terms) {
    ts_combine sum = {.n = s->rows * s->width, .terms = terms, .out = out};
    memcpy(sum.x, x, (size_t)terms * sizeof *x);
    if (s->device_class) {
        sum.width = s->width;
        sum.row_class = s->device_class;
        sum.class_c = s->device_c + which * s->classes * TS_MAX_TERMS;
        return s->kernels->combine(&sum);
    }
    // Without classes a term of coefficient 0 would count with what is in it.
    sum.terms = 0;
    for (int k = 0; k < terms; k++) {
        if (s->c[which][k] != 0.0) {
            sum.c[sum.terms] = s->c[which][k];
            sum.x[sum.terms++] = x[k];
        }
    }
    return s->kernels->combine(&sum);
}

// The coefficients of sum `which` for a class, of as many terms as the sum has.
static double *terms_of(ts_solver *s, int which, int64_t class_index) {
    return s->c[which * s->classes + class_index];
}

// Before a class begins, and for ever when it is held, the sums leave x alone.
static bool moves(const ts_solver *s, int64_t step, int64_t class_index) {
    return step >= s->begin[class_index];
}

// x0 = x - level v
static void foretell(ts_solver *s, int64_t step, int64_t class_index) {
    double *c = terms_of(s, FORETELL, class_index);
    c[0] = 1.0;
    c[1] = -(double)ts_solver_level(s, step, class_index);
}

static int upload(ts_solver *s) {
    const size_t bytes = (size_t)(SUMS * s->classes) * sizeof *s->c;
    return s->device_c ? s->kernels->device->upload(s->device_c, s->c, bytes) : TS_OK;
}

// ---- Euler

static int euler_step(ts_solver *s, int64_t step, const float *velocity, float *x) {
    for (int64_t k = 0; k < s->classes; k++) {
        double *move = terms_of(s, MOVE, k);
        foretell(s, step, k);
        move[0] = 1.0;
        move[1] = ts_solver_level(s, step + 1, k) - ts_solver_level(s, step, k);
    }
    TS_TRY(upload(s));
    TS_TRY(combine(s, FORETELL, s->x0[0], (const float *[]){x, velocity}, 2));
    return combine(s, MOVE, x, (const float *[]){x, velocity}, 2);
}

// ---- UniPC

// Corrects x, which the predictor of step i-1 reached, with the x0 found there (x0[0]):
//   x = ratio start - a (x0[1] + c_old (x0[2] - x0[1]) / r + c_new (x0[0] - x0[1]))
// Coefficients of x, start, x0[1], x0[0], x0[2]. A class whose past is not known has nothing to correct.
static void unipc_correct(ts_solver *s, int64_t i, int64_t k) {
    double *c = terms_of(s, CORRECT, k);
    memset(c, 0, sizeof(coefficients));
    if (!moves(s, i, k) || i == s->known[k]) {
        c[0] = 1.0;
        return;
    }
    const double level = ts_solver_level(s, i, k), h = stride(s, i - 1, k), e = expm1(-h), a = (1.0 - level) * e;
    double c_old = 0.0, c_new = 0.5, r = 1.0;
    if (order(s, i - 1, k) == 2) {
        r = -stride(s, i - 2, k) / h;
        const double phi = -e / h - 1.0, b1 = phi / e, b2 = 2.0 * (-phi / h - 0.5) / e;
        c_old = (b1 - b2) / (1.0 - r);
        c_new = b1 - c_old;
    }
    const double older = c_old / r;
    c[1] = level / ts_solver_level(s, i - 1, k);
    c[2] = -a * (1.0 - older - c_new);
    c[3] = -a * c_new;
    c[4] = -a * older;
}

//   x = ratio x - a (x0[0] + c (x0[1] - x0[0]))
// Coefficients of x, x0[0], x0[1].
static void unipc_predict(ts_solver *s, int64_t i, int64_t k) {
    double *c = terms_of(s, MOVE, k);
    memset(c, 0, sizeof(coefficients));
    if (!moves(s, i, k)) {
        c[0] = 1.0;
        return;
    }
    if (i + 1 == s->schedule->steps) {  // level 0: the sample is x0 itself
        c[1] = 1.0;
        return;
    }
    const double h = stride(s, i, k), a = (1.0 - ts_solver_level(s, i + 1, k)) * expm1(-h);
    const double slope = order(s, i, k) == 2 ? 0.5 / (-stride(s, i - 1, k) / h) : 0.0;
    c[0] = (double)ts_solver_level(s, i + 1, k) / ts_solver_level(s, i, k);
    c[1] = -a * (1.0 - slope);
    c[2] = -a * slope;
}

static int unipc_step(ts_solver *s, int64_t step, const float *velocity, float *x) {
    float *oldest = s->x0[2];
    s->x0[2] = s->x0[1];
    s->x0[1] = s->x0[0];
    s->x0[0] = oldest;
    for (int64_t k = 0; k < s->classes; k++) {
        foretell(s, step, k);
        unipc_correct(s, step, k);
        unipc_predict(s, step, k);
    }
    TS_TRY(upload(s));
    // x0 comes from the uncorrected sample, where the velocity was taken, and is not made anew after the correction.
    TS_TRY(combine(s, FORETELL, s->x0[0], (const float *[]){x, velocity}, 2));
    if (step > ts_solver_first_step(s)) {
        TS_TRY(combine(s, CORRECT, x, (const float *[]){x, s->start, s->x0[1], s->x0[0], s->x0[2]}, 5));
    }
    TS_TRY(s->kernels->device->copy(s->start, x, (size_t)(s->rows * s->width) * sizeof *x));
    return combine(s, MOVE, x, (const float *[]){x, s->x0[0], s->x0[1]}, 3);
}

// ---- steps

int ts_solver_step(ts_solver *s, int64_t step, const float *velocity, float *x) {
    TS_ASSERT(step == s->next && step < s->schedule->steps);
    s->next++;
    return s->kind == TS_SOLVER_UNIPC ? unipc_step(s, step, velocity, x) : euler_step(s, step, velocity, x);
}

void ts_solver_forget(ts_solver *s, int64_t class_index) {
    s->known[class_index] = s->next > s->begin[class_index] ? s->next : s->begin[class_index];
}

const float *ts_solver_x0(const ts_solver *s) {
    return s->next > ts_solver_first_step(s) ? s->x0[0] : NULL;
}

int ts_solver_memory(ts_solver *s, float **array, int *count) {
    *count = arrays(s->kind);
    for (int k = 0; k < *count; k++) {
        array[k] = k < 3 ? s->x0[k] : s->start;
    }
    return TS_OK;
}

int ts_solver_resume(ts_solver *s, int64_t step) {
    const int64_t first = ts_solver_first_step(s);
    if (step < first || step > s->schedule->steps) {
        return TS_FAIL(TS_EUSAGE, "a solver cannot go on at step %lld; its steps are %lld to %lld", (long long)step,
                       (long long)first, (long long)s->schedule->steps);
    }
    s->next = step;
    return TS_OK;
}
