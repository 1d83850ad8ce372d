// The polynomial of an equivariant transformer, its squarings and its derivative, for whatever layout the tokens have.
//
// A layout says how many nums a matrix takes (TOKEN), which of them are a thread's (`band`), and how to load, store, multiply
// and add the identity; weights, depth and squarings are run-time arguments, so that one library serves every tier.

#pragma once

#include "lanes.h"

namespace {

// --- weighted sums of tokens ------------------------------------------------------------------------------------------

template <int OUT, int BLOCK>
inline void combine_block(const num* tokens, int length, int tokens_in, const real* w, num* out, int at) {
  num sum[OUT][BLOCK] = {};
  for (int t = 0; t < tokens_in; ++t) {
#pragma GCC unroll 8
    for (int o = 0; o < OUT; ++o) {
      const vec weight = all_lanes(w[o * tokens_in + t]);
#pragma GCC unroll 8
      for (int b = 0; b < BLOCK; ++b) scale_add(sum[o][b], weight, tokens[t * length + at + b]);
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 8
    for (int b = 0; b < BLOCK; ++b) out[o * length + at + b] = sum[o][b];
}

// out_o = Σ_t w[o, t] token_t for OUT outputs, entries `first` to `last` of the `length` of each token and output.
template <int OUT>
inline void combine(const num* tokens, int length, int tokens_in, const real* w, num* out, int first, int last) {
  constexpr int BLOCK = PARTS == 2 ? 2 : 4;
  int at = first;
  for (; at + BLOCK <= last; at += BLOCK) combine_block<OUT, BLOCK>(tokens, length, tokens_in, w, out, at);
  if (at + 2 <= last) combine_block<OUT, 2>(tokens, length, tokens_in, w, out, at), at += 2;
  if (at < last) combine_block<OUT, 1>(tokens, length, tokens_in, w, out, at);
}

// One sum, of a thread's band of matrices, or of matrices and their derivatives.
template <class Layout, int MEMBERS, class Team>
inline void combine(const Team& team, const num* tokens, int tokens_in, const real* w, num* out) {
  constexpr int LENGTH = MEMBERS * Layout::TOKEN;
  if constexpr (Team::ALONE) {
    combine<1>(tokens, LENGTH, tokens_in, w, out, 0, LENGTH);
  } else {
    const Band band = Layout::band(team);
    for (int start = 0; start < LENGTH; start += Layout::TOKEN)
      combine<1>(tokens, LENGTH, tokens_in, w, out, start + band.first * Layout::STRIDE, start + band.last * Layout::STRIDE);
  }
}

// Once all threads of a team have computed their bands of a token, those of the others, each from where that one has it.
template <class Layout, int MEMBERS, class Team>
inline void gather(const Team& team, num* token) {
  if constexpr (!Team::ALONE) {
    team.meet();
    for (int i = 0; i < team.size; ++i) {
      if (i == team.index) continue;
      const Band band = Layout::band(Team{i, team.size});
      const num* from = token + (i - team.index) * team.apart;
      for (int start = 0; start < MEMBERS * Layout::TOKEN; start += Layout::TOKEN) {
        const int first = start + band.first * Layout::STRIDE, last = start + band.last * Layout::STRIDE;
        std::memcpy(token + first, from + first, (last - first) * sizeof(num));
      }
    }
  }
}

// --- the network ------------------------------------------------------------------------------------------------------

struct Network {
  const real* weights;  // scores and values of heads 2 … m, then the read-out, as EquivariantTransformer.packed
  int64_t products, squarings;
  double identity;
};

// Networks of increasing reach: radii for ‖A‖, and for ‖A²‖^{1/2} while ‖A‖ is at most `ratio` times that.  Derivatives are
// computed by the network `least` or a later one.
struct Ladder {
  const real *radii, *majorants;
  double ratio;
  int64_t rungs, least;
  const Network* nets;
};

// p(A/2^s)^(2^s) from the token A/2^s at the head of the stream (and the one of (A/2^s)² behind it, where it is known);
// of a matrix, or of a matrix and its derivative (MEMBERS = 2).  Returns where the result lies.
//
// Each thread of a team has a stream of its own.  Of a product it computes its band, for which it needs its band of the
// first factor and all of the second: so it fetches the rest of each token once, in one piece, and combines it itself.
template <class Layout, int MEMBERS, class Team>
inline num* evaluate(const Network& net, num* stream, bool square_known, const Team& team) {
  constexpr int LENGTH = MEMBERS * Layout::TOKEN;
  const Band band = Layout::band(team);
  const int m = int(net.products);
  num* pair = stream + int64_t(m + 1) * LENGTH;
  if (!square_known) {
    Layout::template product<MEMBERS>(stream, stream, stream + LENGTH, band);
    gather<Layout, MEMBERS>(team, stream + LENGTH);
  }
  const real* w = net.weights;
  for (int h = 2; h <= m; ++h) {
    if constexpr (Team::ALONE) {
      combine<2>(stream, LENGTH, h, w, pair, 0, LENGTH);
    } else {
      combine<Layout, MEMBERS>(team, stream, h, w, pair);
      combine<1>(stream, LENGTH, h, w + h, pair + LENGTH, 0, LENGTH);
    }
    num* token = stream + h * LENGTH;
    Layout::template product<MEMBERS>(pair, pair + LENGTH, token, band);
    if (h < m) gather<Layout, MEMBERS>(team, token);
    w += 2 * h;
  }
  combine<Layout, MEMBERS>(team, stream, m + 1, w, pair);
  Layout::add_identity(pair, real(net.identity), band);
  num *now = pair, *spare = pair + LENGTH;
  for (int s = 0; s < net.squarings; ++s) {
    gather<Layout, MEMBERS>(team, now);
    Layout::template product<MEMBERS>(now, now, spare, band);
    std::swap(now, spare);
  }
  return now + (MEMBERS - 1) * Layout::TOKEN;
}

// Room for the stream and for the scores and values of a head.
template <class Layout>
inline int64_t room(const Ladder& ladder, int members) {
  int64_t deepest = 1;
  for (int64_t r = 0; r < ladder.rungs; ++r) deepest = std::max(deepest, ladder.nets[r].products);
  return (deepest + 3) * members * Layout::TOKEN;
}

inline real scale_of(const Network& net) { return std::ldexp(real(1), -int(net.squarings)); }

// --- norms ------------------------------------------------------------------------------------------------------------

// min(√(‖A‖₁‖A‖_∞), ‖A‖_F) of one matrix, safe from overflow; NaN where A has NaN.
real careful_norm(const Source& A, int64_t at) {
  real columns[N] = {}, widest = 0, tallest = 0, frobenius = 0;
  const real* matrix = A.data + at * A.matrix;
  for (int i = 0; i < N; ++i) {
    real row = 0;
    for (int j = 0; j < N; ++j) {
      const real* entry = matrix + i * A.row + j * A.column;
      const real modulus = PARTS == 2 ? std::hypot(entry[0], entry[PARTS - 1]) : std::abs(entry[0]);
      if (std::isnan(entry[0]) || std::isnan(entry[PARTS - 1])) return std::numeric_limits<real>::quiet_NaN();
      row += modulus;
      columns[j] += modulus;
      frobenius = std::hypot(frobenius, modulus);
    }
    widest = std::max(widest, row);
  }
  for (int j = 0; j < N; ++j) tallest = std::max(tallest, columns[j]);
  return std::min(frobenius, std::sqrt(widest) * std::sqrt(tallest));
}

}  // namespace

extern "C" {

int neural_expm_value(const Source* A, int64_t count, const Ladder* ladder, int64_t trust, uint8_t* level, real* out,
                      int64_t threads);
int neural_expm_frechet(const Source* A, const Source* E, int64_t count, const Ladder* ladder, const uint8_t* level,
                        real* out, int64_t threads);

// What is the same in many calls; `how` A of a derivative lies: 1 transposed, 2 conjugate, 3 both.
struct Batch {
  const Ladder* ladder;
  int64_t count, threads, how;
};

// The same of matrices that follow each other, without trust: each argument takes a caller in a hurry a tenth of a
// microsecond.
int neural_expm_packed_value(const real* A, uint8_t* level, real* out, const Batch* batch) {
  const Source source = {A, REALS, N * PARTS, PARTS, 0};
  return neural_expm_value(&source, batch->count, batch->ladder, 0, level, out, batch->threads);
}

// And as a built-in function of Python (builtin.py), which lends the two functions that it takes to read integers and to
// return one.
struct PyObject;
static void* (*as_pointer)(PyObject*);
static PyObject* (*from_long)(long);

void neural_expm_meet_python(void* (*pointer)(PyObject*), PyObject* (*number)(long)) {
  as_pointer = pointer;
  from_long = number;
}

PyObject* neural_expm_value_at_once(PyObject*, PyObject* const* argument, std::ptrdiff_t) {
  return from_long(neural_expm_packed_value(
      static_cast<const real*>(as_pointer(argument[0])), static_cast<uint8_t*>(as_pointer(argument[1])),
      static_cast<real*>(as_pointer(argument[2])), static_cast<const Batch*>(as_pointer(argument[3]))));
}

int neural_expm_packed_frechet(const real* A, const real* E, const uint8_t* level, real* out, const Batch* batch) {
  const bool transposed = batch->how & 1;
  const Source point = {A, REALS, (transposed ? 1 : N) * PARTS, (transposed ? N : 1) * PARTS, batch->how >> 1};
  const Source direction = {E, REALS, N * PARTS, PARTS, 0};
  return neural_expm_frechet(&point, &direction, batch->count, batch->ladder, level, out, batch->threads);
}
}
