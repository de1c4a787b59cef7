#include "query_tables.h"

#include <algorithm>

#include "pack.h"

namespace vqdistill {
namespace {

// Queries projected together: they share one pass over the codewords and stay in L2 meanwhile.
constexpr std::size_t kProjected = 32;

double squared_norm(const float* x, std::size_t d) {
    double sum = 0.0;
    for (std::size_t i = 0; i < d; ++i) sum += static_cast<double>(x[i]) * x[i];
    return sum;
}

bool is_identity(const float* matrix, std::size_t rows, std::size_t d) {
    if (rows != d) return false;
    for (std::size_t i = 0; i < rows * d; ++i)
        if (matrix[i] != (i % (d + 1) == 0 ? 1.0f : 0.0f)) return false;
    return true;
}

// No sum of entries is larger.
int highest_sum(const std::uint8_t* tables, std::size_t m) {
    int sum = 0;
    for (std::size_t j = 0; j < m; ++j) {
        std::uint8_t highest = 0;
        for (std::size_t k = 0; k < kSub; ++k) highest = std::max(highest, tables[j * kSub + k]);
        sum += highest;
    }
    return sum;
}

}  // namespace

TableBuilder::TableBuilder(const IndexView& index, const Kernels& kernels)
    : index_(index),
      kernels_(kernels),
      rotates_(!index.additive() && !is_identity(index.rotation, index.m * index.dsub, index.d)),
      table_init_(index.m * kSub, 0.0f) {
    if (index.additive()) return;
    words_t_.resize(index.m * index.dsub * kSub);
    for (std::size_t j = 0; j < index.m; ++j)
        for (std::size_t c = 0; c < kSub; ++c) {
            const float* word = index.codewords.f32 + (j * kSub + c) * index.dsub;
            for (std::size_t t = 0; t < index.dsub; ++t) words_t_[(j * index.dsub + t) * kSub + c] = word[t];
            if (index.metric == Metric::l2)
                table_init_[j * kSub + c] = static_cast<float>(-squared_norm(word, index.dsub));
        }
}

void TableBuilder::build(const float* queries, std::size_t q, bool keep_lut, Scratch& scratch) const {
    const std::size_t size = index_.m * kSub;
    scratch.lut.resize((keep_lut ? q : std::min(q, kProjected)) * size);
    scratch.tables.resize(q * size + kLine);
    std::uint8_t* const all_tables = line_from(scratch.tables.data());
    scratch.queries.resize(q);
    for (std::size_t first = 0; first < q; first += kProjected) {
        const std::size_t count = std::min(kProjected, q - first);
        float* const luts = scratch.lut.data() + (keep_lut ? first * size : 0);
        const float* const part = queries + first * index_.d;
        luts_of(part, count, luts, scratch);
        for (std::size_t i = 0; i < count; ++i) {
            QueryTables& query = scratch.queries[first + i];
            std::uint8_t* const tables = all_tables + (first + i) * size;
            query.tables = tables;
            query.lut = keep_lut ? luts + i * size : nullptr;
            query.scale = kernels_.quantize_tables(luts + i * size, index_.m, tables);
            query.constant = constant_term(part + i * index_.d);
            query.highest = highest_sum(tables, index_.m);
            if (index_.quads) tables_to_quads(tables, index_.m);
        }
    }
}

void TableBuilder::take(const PlanView& plan, std::size_t first, std::size_t q, Scratch& scratch) const {
    const std::size_t size = index_.m * kSub;
    scratch.tables.resize(q * size + kLine);
    std::uint8_t* const all_tables = line_from(scratch.tables.data());
    std::copy_n(plan.tables + first * size, q * size, all_tables);
    scratch.queries.resize(q);
    for (std::size_t i = 0; i < q; ++i) {
        std::uint8_t* const tables = all_tables + i * size;
        const double* const scale = plan.scales + 3 * (first + i);
        scratch.queries[i] = {tables, plan.luts == nullptr ? nullptr : plan.luts + (first + i) * size,
                              {scale[0], static_cast<float>(scale[1])}, static_cast<float>(scale[2]),
                              highest_sum(tables, index_.m)};
        if (index_.quads) tables_to_quads(tables, index_.m);
    }
}

void TableBuilder::plan(const float* queries, std::size_t q, bool keep_lut, SearchPlan& plan, Scratch& scratch) const {
    const std::size_t size = index_.m * kSub, before = plan.tables.size();
    plan.tables.resize(before + q * size);
    scratch.lut.resize(std::max(scratch.lut.size(), q * size));
    luts_of(queries, q, scratch.lut.data(), scratch);
    for (std::size_t i = 0; i < q; ++i) {
        const float* const lut = scratch.lut.data() + i * size;
        const TableScale scale = kernels_.quantize_tables(lut, index_.m, plan.tables.data() + before + i * size);
        for (const double number : {scale.bias, double{scale.step}, double{constant_term(queries + i * index_.d)}})
            plan.scales.push_back(number);
    }
    if (keep_lut) plan.luts.insert(plan.luts.end(), scratch.lut.data(), scratch.lut.data() + q * size);
}

void TableBuilder::luts_of(const float* queries, std::size_t q, float* luts, Scratch& scratch) const {
    if (index_.additive())
        index_.codewords.products(kernels_, queries, q, index_.m * kSub, index_.d, luts);
    else
        product_luts(queries, q, luts, scratch);
}

// From R q, or 2 R (q - mean) for l2, where the scores hold twice the inner product.
void TableBuilder::product_luts(const float* queries, std::size_t q, float* luts, Scratch& scratch) const {
    const std::size_t d = index_.d, d_out = index_.m * index_.dsub;
    if (index_.metric == Metric::l2) {
        scratch.centered.resize(std::max(scratch.centered.size(), q * d));
        for (std::size_t i = 0; i < q * d; ++i) scratch.centered[i] = 2.0f * (queries[i] - index_.mean[i % d]);
        queries = scratch.centered.data();
    }
    if (rotates_) {
        scratch.projected.resize(std::max(scratch.projected.size(), q * d_out));
        kernels_.gemm_nt(queries, q, index_.rotation, d_out, d, scratch.projected.data());
        queries = scratch.projected.data();
    }
    for (std::size_t i = 0; i < q; ++i)
        kernels_.pq_tables(queries + i * d_out, words_t_.data(), table_init_.data(), index_.m,
                           index_.dsub, luts + i * index_.m * kSub);
}

// What all rows of a query have in common; residual codes have a term a list instead.
float TableBuilder::constant_term(const float* query) const {
    const auto* mean = reinterpret_cast<const std::uint8_t*>(index_.mean);
    if (index_.metric == Metric::l2) return kernels_.l2_f32(query, mean, index_.d);
    return index_.residual ? 0.0f : kernels_.dot_f32(query, mean, index_.d);
}

}  // namespace vqdistill
