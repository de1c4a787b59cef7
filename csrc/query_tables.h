// From queries to the tables of bytes that a scan looks up.
#pragma once

#include <cstdint>
#include <vector>

#include "index_view.h"
#include "search_plan.h"

namespace vqdistill {

// What a query's scores are made of: constant + scale.bias + [term of the list] + scale.step * sum of table entries.
struct QueryTables {
    const std::uint8_t* tables;  // as the scan takes them, see ScanQuery
    const float* lut;            // (m, 16), what the tables were rounded from; null unless asked for
    TableScale scale;
    float constant;      // <q, mean>, or -|q - mean|^2 for l2; 0 where lists have a term of their own
    int highest;         // no sum is larger
};

// Builds the tables of blocks of queries. Keeps its memory, so that it allocates nothing after the first blocks.
class TableBuilder {
public:
    // REQUIRES the view's arrays to outlive it.
    TableBuilder(const IndexView& index, const Kernels& kernels);

    struct Scratch {
        std::vector<float> centered, projected, lut;
        std::vector<std::uint8_t> tables;
        std::vector<QueryTables> queries;
    };

    // Fills scratch.queries for queries (q, d); `keep_lut` = with float tables.
    void build(const float* queries, std::size_t q, bool keep_lut, Scratch& scratch) const;

    // The same from what has been planned of queries first .. first + q - 1. REQUIRES the plan to outlive their use.
    void take(const PlanView& plan, std::size_t first, std::size_t q, Scratch& scratch) const;

    // Puts the tables of queries (q, d) behind those of a plan.
    void plan(const float* queries, std::size_t q, bool keep_lut, SearchPlan& plan, Scratch& scratch) const;

private:
    void luts_of(const float* queries, std::size_t q, float* luts, Scratch& scratch) const;
    void product_luts(const float* queries, std::size_t q, float* luts, Scratch& scratch) const;
    float constant_term(const float* query) const;

    IndexView index_;
    const Kernels& kernels_;
    bool rotates_;                   // false if the rotation of product codes is the identity
    std::vector<float> words_t_;     // (m, dsub, 16): product codewords as the table kernel reads them
    std::vector<float> table_init_;  // (m, 16): 0, or -|codeword|^2 for l2
};

}  // namespace vqdistill
