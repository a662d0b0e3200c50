#include <string_view>
#include <utility>
#include <vector>

#include "bindings/core_bindings.h"
#include "bindings/numpy_arrays.h"
#include "bindings/text_views.h"
#include "core/error.h"
#include "core/sentencepiece_bpe.h"

namespace dsm::bindings {
namespace {

std::unique_ptr<SentencePieceBpe> make_sentencepiece(const py::sequence& pieces,
                                                     const Array<float>& scores,
                                                     const Array<uint8_t>& kinds,
                                                     bool byte_fallback, bool dummy_prefix) {
  const py::tuple kept(pieces);
  const std::vector<std::string_view> texts = utf8_views(kept);
  if (texts.size() != view(scores).size() || texts.size() != view(kinds).size()) {
    throw py::value_error("as many scores and kinds as pieces");
  }
  std::vector<SentencePiece> table;
  for (size_t i = 0; i < texts.size(); ++i) {
    table.push_back({texts[i], view(scores)[i], static_cast<PieceKind>(view(kinds)[i])});
  }
  return std::make_unique<SentencePieceBpe>(table, byte_fallback, dummy_prefix);
}

py::tuple encode_batch(const SentencePieceBpe& encoder, const py::sequence& texts,
                       bool continuation, int threads) {
  const py::tuple kept(texts);  // a list might change while other threads run
  const std::vector<std::string_view> views = utf8_views(kept);
  EncodedTexts encoded;
  {
    const py::gil_scoped_release release;
    encoded = encoder.encode_batch(views, continuation, threads);
  }
  return py::make_tuple(release_to_numpy(std::move(encoded.ids)),
                        release_to_numpy(std::move(encoded.offsets)));
}

}  // namespace

void bind_tokenizers(py::module_& module) {
  py::class_<SentencePieceBpe>(module, "SentencePieceBpe")
      .def(py::init(&make_sentencepiece), py::arg("pieces"), py::kw_only(),
           py::arg("scores").noconvert(), py::arg("kinds").noconvert(), py::arg("byte_fallback"),
           py::arg("dummy_prefix"))
      .def("encode_batch", &encode_batch, py::arg("texts"), py::kw_only(), py::arg("continuation"),
           py::arg("threads"));
}

}  // namespace dsm::bindings
