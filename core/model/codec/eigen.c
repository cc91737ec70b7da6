// SPDX-License-Identifier: Apache-2.0
// Householder tridiagonalisation, then implicit QR steps with Wilkinson's shift (Golub & Van Loan, "Matrix
// Computations", 4th edition, sections 8.3.1 to 8.3.3). Serial: 768 x 768 takes half a second, once.
#include "core/model/codec/eigen.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arena.h"
#include "core/base/status.h"

enum { LANES = 8, MAX_SWEEPS = 60, COLUMN_CHUNK = 64 };

// Eight partial sums: a fixed order that the compiler can turn into vectors.
static double dot(const double *x, const double *y, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; j++) {
            lane[j] += x[i + j] * y[i + j];
        }
    }
    for (; i < n; i++) {
        sum += x[i] * y[i];
    }
    for (int j = 0; j < LANES; j++) {
        sum += lane[j];
    }
    return sum;
}

// x [n] becomes v with v[0] = 1 and (I - beta v v^T) x = *head e_0; returns beta.
static double householder(double *x, int64_t n, double *head) {
    const double tail = dot(x + 1, x + 1, n - 1), first = x[0];
    if (tail == 0) {
        *head = first;
        x[0] = 1;
        return 0;
    }
    const double norm = sqrt(first * first + tail);
    const double pivot = first <= 0 ? first - norm : -tail / (first + norm);  // no cancellation
    const double beta = 2 * pivot * pivot / (tail + pivot * pivot);
    for (int64_t i = 1; i < n; i++) {
        x[i] /= pivot;
    }
    x[0] = 1;
    *head = norm;
    return beta;
}

// a -> T = Q^T a Q with diagonal d [n] and off-diagonal e [n - 1]. Reflector k is left in a[k][k + 1 ..], its beta in
// beta[k]. `work` [n].
static void tridiagonalise(double *a, int64_t n, double *d, double *e, double *beta, double *work) {
    for (int64_t k = 0; k < n - 1; k++) {
        const int64_t m = n - k - 1;
        double *v = a + k * n + k + 1;             // row k equals column k
        double *trailing = a + (k + 1) * (n + 1);  // [m, m], rows n apart
        d[k] = a[k * n + k];
        beta[k] = householder(v, m, &e[k]);
        if (beta[k] == 0) {
            continue;
        }
        for (int64_t i = 0; i < m; i++) {
            work[i] = beta[k] * dot(trailing + i * n, v, m);
        }
        const double half = beta[k] * dot(work, v, m) / 2;
        for (int64_t i = 0; i < m; i++) {
            work[i] -= half * v[i];
        }
        for (int64_t i = 0; i < m; i++) {
            double *row = trailing + i * n;
            const double vi = v[i], wi = work[i];
            for (int64_t j = 0; j < m; j++) {
                row[j] -= vi * work[j] + wi * v[j];
            }
        }
    }
    d[n - 1] = a[n * n - 1];
}

// z = Q^T: row r is e_r H_{n-2} ... H_0.
static void accumulate(const double *a, int64_t n, const double *beta, double *z) {
    for (int64_t r = 0; r < n; r++) {
        double *row = z + r * n;
        memset(row, 0, (size_t)n * sizeof *row);
        row[r] = 1;
        for (int64_t k = r - 1; k >= 0; k--) {
            const double *v = a + k * n + k + 1;
            const double factor = beta[k] * dot(row + k + 1, v, n - k - 1);
            for (int64_t i = 0; i < n - k - 1; i++) {
                row[k + 1 + i] -= factor * v[i];
            }
        }
    }
}

typedef struct rotation {
    double c, s;
} rotation;

// One implicit QR step on rows first..last of the tridiagonal matrix; g[first .. last) are the rotations it used.
static void qr_step(double *d, double *e, int64_t first, int64_t last, rotation *g) {
    const double gap = (d[last - 1] - d[last]) / 2, square = e[last - 1] * e[last - 1];
    const double root = sqrt(gap * gap + square);
    const double shift = d[last] - square / (gap + (gap >= 0 ? root : -root));
    double x = d[first] - shift, bulge = e[first];
    for (int64_t k = first; k < last; k++) {
        const double length = sqrt(x * x + bulge * bulge);
        const double c = length > 0 ? x / length : 1, s = length > 0 ? bulge / length : 0;
        if (k > first) {
            e[k - 1] = length;
        }
        const double p = d[k], q = d[k + 1], o = e[k];
        d[k] = c * c * p + 2 * c * s * o + s * s * q;
        d[k + 1] = s * s * p - 2 * c * s * o + c * c * q;
        e[k] = c * s * (q - p) + (c * c - s * s) * o;
        if (k < last - 1) {
            x = e[k];
            bulge = s * e[k + 1];
            e[k + 1] *= c;
        }
        g[k] = (rotation){c, s};
    }
}

// Rows k and k + 1 of z turn by g[k]: by chunks of columns, each of which stays in the cache through the sweep.
static void rotate_rows(double *z, int64_t n, int64_t first, int64_t last, const rotation *g) {
    for (int64_t chunk = 0; chunk < n; chunk += COLUMN_CHUNK) {
        const int64_t width = n - chunk < COLUMN_CHUNK ? n - chunk : COLUMN_CHUNK;
        for (int64_t k = first; k < last; k++) {
            double *restrict upper = z + k * n + chunk, *restrict lower = upper + n;
            const double c = g[k].c, s = g[k].s;
            for (int64_t j = 0; j < width; j++) {
                const double u = upper[j], l = lower[j];
                upper[j] = c * u + s * l;
                lower[j] = c * l - s * u;
            }
        }
    }
}

static int diagonalise(double *d, double *e, int64_t n, double *z, rotation *g) {
    double norm = 0;
    for (int64_t k = 0; k < n; k++) {
        norm = fmax(norm, fabs(d[k]) + (k < n - 1 ? fabs(e[k]) : 0) + (k ? fabs(e[k - 1]) : 0));
    }
    const double negligible = DBL_EPSILON * norm;
    int64_t last = n - 1;
    for (int64_t sweep = 0; sweep < MAX_SWEEPS * n; sweep++) {
        while (last > 0 && fabs(e[last - 1]) <= negligible) {
            last--;
        }
        if (last <= 0) {
            return TS_OK;
        }
        int64_t first = last - 1;
        while (first > 0 && fabs(e[first - 1]) > negligible) {
            first--;
        }
        qr_step(d, e, first, last, g);
        rotate_rows(z, n, first, last, g);
    }
    return TS_FAIL(TS_EINTERNAL, "eigenvalues of a %lld x %lld matrix do not converge: it holds NaN or infinity",
                   (long long)n, (long long)n);
}

typedef struct ranked {
    double value;
    int64_t row;
} ranked;

static int by_falling_value(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->value != y->value) {
        return x->value > y->value ? -1 : 1;
    }
    return x->row < y->row ? -1 : 1;
}

// Falling order, and the sign rule: an eigenvector is only known up to its sign.
static void arrange(const double *d, const double *z, int64_t n, ranked *order, double *value, double *vector) {
    for (int64_t i = 0; i < n; i++) {
        order[i] = (ranked){d[i], i};
    }
    qsort(order, (size_t)n, sizeof *order, by_falling_value);
    for (int64_t i = 0; i < n; i++) {
        const double *from = z + order[i].row * n;
        double *to = vector + i * n;
        int64_t largest = 0;
        for (int64_t j = 1; j < n; j++) {
            largest = fabs(from[j]) > fabs(from[largest]) ? j : largest;
        }
        const double sign = from[largest] < 0 ? -1 : 1;
        for (int64_t j = 0; j < n; j++) {
            to[j] = sign * from[j];
        }
        value[i] = order[i].value;
    }
}

int ts_eigen_symmetric(double *a, int64_t n, double *value, double *vector) {
    const size_t row = (size_t)n * sizeof(double);
    double *z = ts_malloc(row * (size_t)n), *d = ts_malloc(4 * row);
    rotation *g = ts_malloc((size_t)n * sizeof *g);
    ranked *order = ts_malloc((size_t)n * sizeof *order);
    int status = TS_ERESOURCE;
    if (z && d && g && order) {
        double *e = d + n, *beta = e + n, *work = beta + n;
        tridiagonalise(a, n, d, e, beta, work);
        accumulate(a, n, beta, z);
        status = diagonalise(d, e, n, z, g);
    }
    if (!status) {
        arrange(d, z, n, order, value, vector);
    }
    free(z);
    free(d);
    free(g);
    free(order);
    return status;
}
