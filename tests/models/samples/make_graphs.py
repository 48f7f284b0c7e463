"""Make the samples in `graphs/` with the frameworks' own save calls, and `graphs.json`, what is expected.

    pip install onnx keras tensorflow-cpu gguf     # in an environment of its own
    python tests/models/samples/make_graphs.py

The counts are what the framework itself says of the model (`count_params`, the arrays put in), less statistics.
"""

from __future__ import annotations

import json
import os
import shutil
from math import prod
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import gguf
import keras
import numpy as np
import onnx
import tensorflow as tf
from keras import layers
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
OUT = HERE / "graphs"
EXPECTED: dict[str, dict[str, object]] = {}
RNG = np.random.default_rng(0)


def expect(name: str, **fields: object) -> None:
    EXPECTED[name] = fields


def array(*shape: int, dtype: str = "float32") -> np.ndarray:
    return RNG.normal(size=shape).astype(dtype)


# -- ONNX


def initializer(name: str, value: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(value, name)


def save(name: str, nodes, inputs, outputs, held, *, functions=(), opsets=(), metadata=None, **kwargs) -> None:
    graph = helper.make_graph(nodes, name, inputs, outputs, held)
    imports = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in opsets)]
    model = helper.make_model(graph, producer_name="pytorch", opset_imports=imports, functions=list(functions))
    model.ir_version = 9
    if metadata:
        helper.set_model_props(model, metadata)
    onnx.save(model, OUT / f"{name}.onnx", **kwargs)


def value(name: str, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def make_onnx() -> None:
    node = helper.make_node
    save(
        "mlp",
        [node("Gemm", ["x", "w1", "b1"], ["h"]), node("Relu", ["h"], ["r"]), node("Gemm", ["r", "w2", "b2"], ["y"])],
        [value("x", ["batch", 6])],
        [value("y", ["batch", 1])],
        [
            initializer("w1", array(6, 8)),
            initializer("b1", array(8)),
            initializer("w2", array(8, 1)),
            initializer("b2", array(1)),
        ],
    )
    expect(
        "mlp.onnx",
        format="onnx",
        framework="pytorch",
        family="tabular",
        task="regression",
        architecture="neural_network",
        parameters=65,
        tensors=4,
        safe=True,
    )

    names = ["scale", "bias", "mean", "var"]
    save(
        "cnn",
        [
            node("Conv", ["pixel_values", "w"], ["c"]),
            node("BatchNormalization", ["c", *names], ["n"]),
            node("Relu", ["n"], ["r"]),
            node("GlobalAveragePool", ["r"], ["p"]),
            node("Flatten", ["p"], ["f"]),
            node("Constant", [], ["k"], value=initializer("", array(4, 5))),
            node("MatMul", ["f", "k"], ["logits"]),
        ],
        [value("pixel_values", ["n", 3, 16, 16])],
        [value("logits", ["n", 5])],
        [initializer("w", array(4, 3, 3, 3)), *(initializer(name, array(4)) for name in names)],
    )
    expect(
        "cnn.onnx",
        format="onnx",
        family="computer_vision",
        task="image_classification",
        architecture="cnn",
        parameters=4 * 27 + 8 + 20,
        safe=True,
    )

    def branch(name: str, size: int) -> onnx.GraphProto:
        return helper.make_graph(
            [
                node("Constant", [], [f"{name}_w"], value=initializer("", array(1, 16, size))),
                node("Constant", [], [f"{name}_r"], value=initializer("", array(1, 16, 4))),
                node("LSTM", ["x", f"{name}_w", f"{name}_r"], ["", f"{name}_h"], hidden_size=4),
            ],
            name,
            [],
            [value(f"{name}_h", [1, 1, 4])],
        )

    save(
        "branches",
        [node("If", ["sr"], ["y"], then_branch=branch("a", 8), else_branch=branch("b", 8))],
        [value("x", ["t", 1, 8]), value("sr", [], TensorProto.BOOL)],
        [value("y", [1, 1, 4])],
        [],
    )
    expect("branches.onnx", format="onnx", architecture="rnn", family="audio", parameters=2 * (128 + 64), safe=True)

    save(
        "external",
        [node("MatMul", ["x", "w"], ["y"])],
        [value("x", ["n", 64])],
        [value("y", ["n", 32])],
        [initializer("w", array(64, 32))],
        save_as_external_data=True,
        location="external.bin",
        size_threshold=0,
    )
    expect(
        "external.onnx",
        format="onnx",
        architecture="linear",
        parameters=2048,
        safe=True,
        size_bytes=(OUT / "external.onnx").stat().st_size + 8192,
    )

    weights = RNG.integers(-128, 127, (16, 8)).astype("int8")
    save(
        "int8",
        [
            node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            node("MatMulInteger", ["q", "w", "z"], ["i"]),
            node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
        ],
        [value("x", ["n", 16])],
        [value("y", ["n", 8])],
        [initializer("w", weights)],
    )
    expect("int8.onnx", format="onnx", parameters=128, quantization="int8", safe=True)

    save(
        "custom",
        [node("Attack", ["x"], ["y"], domain="com.evil", name="n1")],
        [value("x", [1])],
        [value("y", [1])],
        [],
        opsets=["com.evil"],
    )
    expect("custom.onnx", format="onnx", safe=False, findings=["com.evil::Attack"])

    body = helper.make_function(
        "local", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    save(
        "function",
        [node("Twice", ["x"], ["y"], domain="local")],
        [value("x", [1])],
        [value("y", [1])],
        [],
        functions=[body],
        opsets=["local"],
    )
    expect("function.onnx", format="onnx", parameters=0, safe=True)

    width, vocabulary = 8, 64
    nodes, held = [node("Gather", ["embed", "input_ids"], ["x0"])], [initializer("embed", array(vocabulary, width))]
    for block in range(2):
        held.extend(
            initializer(f"encoder.layer.{block}.attention.{part}.weight", array(width, width)) for part in "qkvo"
        )
        weight = f"encoder.layer.{block}.attention."
        x = f"x{block}"
        nodes += [node("MatMul", [x, f"{weight}{part}.weight"], [f"{part}{block}"]) for part in "qkv"]
        nodes += [
            node("Transpose", [f"k{block}"], [f"kt{block}"], perm=[0, 2, 1]),
            node("MatMul", [f"q{block}", f"kt{block}"], [f"s{block}"]),
            node("Softmax", [f"s{block}"], [f"a{block}"]),
            node("MatMul", [f"a{block}", f"v{block}"], [f"av{block}"]),
            node("MatMul", [f"av{block}", f"{weight}o.weight"], [f"x{block + 1}"]),
        ]
    save(
        "encoder",
        nodes,
        [value("input_ids", ["n", "s"], TensorProto.INT64)],
        [value("last_hidden_state", ["n", "s", width])],
        held,
    )
    expect(
        "encoder.onnx",
        format="onnx",
        family="nlp",
        task="feature_extraction",
        architecture="transformer",
        layers=2,
        parameters=vocabulary * width + 8 * width * width,
        safe=True,
    )

    save(
        "yolo",
        [node("Conv", ["images", "w"], ["y"])],
        [value("images", [1, 3, 32, 32])],
        [value("y", [1, 2, 30, 30])],
        [initializer("w", array(2, 3, 3, 3))],
        metadata={"task": "detect", "description": "Ultralytics YOLOv8n model trained on coco"},
    )
    expect("yolo.onnx", model="yolov8n", task="object_detection", family="computer_vision", parameters=54, safe=True)


# -- GGUF


def make_gguf() -> None:
    for name, template in (("llama", None), ("chat", "{% for m in messages %}{{ m.content }}{% endfor %}")):
        writer = gguf.GGUFWriter(OUT / f"{name}.gguf", "llama")
        writer.add_name("Tiny")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
        writer.add_token_list([f"token{number}" for number in range(64)])
        writer.add_token_scores([0.0] * 64)
        if template:
            writer.add_chat_template(template)
        total = 0
        for key, shape in (
            ("token_embd.weight", (64, 32)),
            ("blk.0.attn_q.weight", (32, 32)),
            ("output_norm.weight", (32,)),
        ):
            data = array(*shape)
            if len(shape) > 1:
                packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
                writer.add_tensor(key, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            else:
                writer.add_tensor(key, data)
            total += data.size
        writer.add_tensor("rope_freqs.weight", array(4))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        expect(
            f"{name}.gguf",
            format="gguf",
            family="nlp",
            task="text_generation",
            architecture="transformer",
            model="Tiny (llama)",
            layers=1,
            parameters=total,
            tensors=4,
            quantization="q8_0",
            safe=True,
            findings=["tokenizer.chat_template"] if template else [],
        )


# -- Keras and TensorFlow


def counts(model: keras.Model) -> dict[str, int]:
    statistics = [
        w for w in model.non_trainable_weights if w.path.rsplit("/", 1)[-1] in ("moving_mean", "moving_variance")
    ]
    return {
        "parameters": model.count_params() - sum(prod(w.shape) for w in statistics),
        "trainable_parameters": sum(prod(w.shape) for w in model.trainable_weights),
    }


def keep(built: keras.Model, name: str, *suffixes: str, findings: tuple[str, ...] = (), **fields: object) -> None:
    for suffix in suffixes:
        path = OUT / f"{name}{suffix}"
        if suffix == ".weights.h5":
            built.save_weights(path)
            expect(
                path.name, format="keras_weights", framework="keras", parameters=counts(built)["parameters"], safe=True
            )
        else:
            built.save(path)
            kind = {".keras": "keras", ".h5": "keras_h5"}[suffix]
            expect(
                path.name,
                format=kind,
                framework="keras",
                safe=not findings,
                findings=list(findings),
                **counts(built),
                **fields,
            )


def make_keras() -> None:
    tabular = keras.Sequential([layers.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.1), layers.Dense(1)])
    tabular.compile("adam", "mse")
    tabular.fit(array(2, 6), array(2, 1), verbose=0)
    keep(
        tabular,
        "regressor",
        ".keras",
        ".h5",
        family="tabular",
        task="regression",
        architecture="neural_network",
        layers=2,
    )
    tabular.export(OUT / "saved_model", verbose=False)
    shutil.rmtree(OUT / "saved_model" / "assets", ignore_errors=True)
    expect(
        "saved_model",
        format="tf_saved_model",
        framework="tensorflow",
        family="tabular",
        task="regression",
        architecture="neural_network",
        parameters=65,
        safe=True,
    )
    tf.train.Checkpoint(model=tabular, optimizer=tabular.optimizer).write(OUT / "checkpoint" / "ckpt-1")
    expect("checkpoint", format="tf_checkpoint", framework="tensorflow", parameters=65, safe=True)
    expect("checkpoint/ckpt-1.index", format="tf_checkpoint", parameters=65, safe=True)

    picture = keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(4, 3, name="first"),
            layers.BatchNormalization(name="odd"),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, "softmax"),
        ],
        name="tinynet",
    )
    picture.layers[0].trainable = False
    keep(
        picture,
        "picture",
        ".keras",
        ".h5",
        ".weights.h5",
        family="computer_vision",
        task="image_classification",
        architecture="cnn",
        model="tinynet",
        layers=3,
    )
    words = keras.Sequential(
        [
            layers.Input((None,), dtype="int32"),
            layers.Embedding(30, 4),
            layers.Bidirectional(layers.LSTM(4)),
            layers.Dense(1, "sigmoid"),
        ]
    )
    keep(words, "words", ".keras", family="nlp", task="text_classification", architecture="rnn")
    maker = keras.Sequential(
        [
            layers.Input((10,)),
            layers.Dense(32),
            layers.Reshape((4, 4, 2)),
            layers.Conv2DTranspose(4, 4, 2, "same"),
            layers.Conv2DTranspose(3, 4, 2, "same", activation="tanh"),
        ]
    )
    keep(maker, "generator", ".keras", family="computer_vision", task="image_generation", architecture="gan")
    inner = keras.Sequential([layers.Input((4,)), layers.Lambda(lambda x: x + 1), layers.Dense(2)], name="inner")
    start = layers.Input((4,))
    keep(
        keras.Model(start, layers.Dense(2)(inner(start))), "lambda", ".keras", ".h5", findings=("Lambda", "__lambda__")
    )

    converter = tf.lite.TFLiteConverter.from_keras_model(picture)
    (OUT / "picture.tflite").write_bytes(converter.convert())
    expect(
        "picture.tflite",
        format="tflite",
        framework="tensorflow_lite",
        family="computer_vision",
        task="image_classification",
        architecture="cnn",
        safe=True,
    )


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    make_onnx()
    make_gguf()
    make_keras()
    (HERE / "graphs.json").write_text(json.dumps(EXPECTED, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
