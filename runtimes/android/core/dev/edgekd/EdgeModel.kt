package dev.edgekd

import dev.edgekd.text.Encoding
import dev.edgekd.text.TokenizerError
import java.io.IOException
import kotlin.math.abs
import kotlin.math.exp

/**
 * A bundle, opened: what its tokenizer makes of a text, and what its model says. A text longer than the model takes is
 * cut at its end. Any thread may call; calls wait for one another. All calls throw BundleError where they cannot
 * answer.
 */
abstract class EdgeModel internal constructor(private val files: BundleFiles, threads: Int, task: String) :
    AutoCloseable {
    val settings = Settings.read(files)
    internal val encoder: Encoder
    private val engine: Engine
    private var closed = false

    init {
        if (settings.task != task) throw BundleError("${files.place}: is for ${settings.task}, not $task")
        encoder = opened { openEncoder(files, settings.maxLength) }
        engine = try {
            opened { openEngine(files, settings, threads) }
        } catch (error: BundleError) {
            encoder.close()
            throw error
        }
    }

    private fun <T> opened(make: () -> T): T = try {
        make()
    } catch (error: IOException) {
        throw BundleError("${files.place}: no bundle (${error.message})", error)
    } catch (error: TokenizerError) {
        throw BundleError("${files.place}: ${error.message}", error)
    }

    /** The runtime and its version. */
    val runtime get() = engine.runtime

    /** One inference whose answer is thrown away: the first is slower than those that follow. */
    fun warmUp() = alone { logits(encoder.encode("")) }.let {}

    /** Waits for a call under way, and gives the model's memory back. */
    override fun close() = synchronized(this) {
        if (!closed) {
            closed = true
            engine.close()
            encoder.close()
        }
    }

    /**
     * The golden texts on this device: whether it gives the token ids and the outputs that were verified, and how
     * fast. Run it once in a test on each kind of device that you ship to.
     */
    fun selfTest(): Report {
        val golden = try {
            Golden.read(files.text("model/golden.json"), settings.inputs.map { it.name })
        } catch (error: JsonError) {
            throw BundleError("${files.place}: golden.json cannot be read (${error.message})", error)
        }
        val wrong = ArrayList<String>()
        val rows = golden.texts.mapIndexed { number, text ->
            val encoding = alone { encodeGolden(text) }
            val inputs = inputsOf(encoding)
            val idsEqual = inputs.all { (name, values) -> values.contentEquals(golden.inputs.getValue(name)[number]) }
            var difference: Double? = null
            var milliseconds: Double? = null
            if (idsEqual) {
                val began = System.nanoTime()
                val found = alone { logits(encoding) }.flat()
                milliseconds = (System.nanoTime() - began) / 1e6
                difference = largestDifference(found, golden.logits[number])
                // Not ">": a difference that is no number is beyond every bound.
                if (!(difference <= settings.bound)) {
                    wrong.add("text ${number + 1}: an output is off by ${"%.4g".format(null, difference)}")
                }
            } else {
                wrong.add("text ${number + 1}: token ids differ")
            }
            Report.Row(text, idsEqual, difference, milliseconds, answerGolden(text))
        }
        return Report(golden.texts.size, settings.bound, runtime, wrong, rows)
    }

    private fun largestDifference(found: FloatArray, expected: FloatArray): Double {
        if (found.size != expected.size) return Double.NaN
        return found.indices.fold(0.0) { largest, i ->
            val difference = abs(found[i].toDouble() - expected[i])
            if (difference.isNaN() || difference > largest) difference else largest
        }
    }

    // --- for the tasks ---

    /** Encodes a text of golden.json, and answers it: other than a text only in question answering. */
    internal open fun encodeGolden(text: String): Encoding = encoder.encode(text)

    internal abstract fun answerGolden(text: String): Any

    internal fun <T> alone(work: () -> T): T = synchronized(this) {
        if (closed) throw BundleError("${files.place}: the model was closed")
        try {
            work()
        } catch (error: TokenizerError) {
            throw BundleError("${files.place}: ${error.message}", error)
        }
    }

    /** Padded to the shortest length that the model takes; of the answer the padding is cut off again. */
    internal fun logits(encoding: Encoding): Output {
        val size = encoding.ids.size
        val length = if (settings.lengths.isEmpty()) size else settings.lengths.firstOrNull { it >= size }
        if (length == null) throw BundleError("${files.place}: the model takes at most ${settings.lengths.last()} tokens")
        val inputs = inputsOf(encoding).mapValues { (name, values) ->
            val padding = if (name == "input_ids") settings.padId else 0
            if (length == size) values else IntArray(length) { if (it < size) values[it] else padding }
        }
        val output = engine.run(inputs)
        return if (output.rows == length && size < length && output.rows > 1) output.first(size) else output
    }

    private fun inputsOf(encoding: Encoding): Map<String, IntArray> = settings.inputs.associate { input ->
        val values = when (input.name) {
            "input_ids" -> encoding.ids
            "attention_mask" -> IntArray(encoding.ids.size) { 1 }
            "token_type_ids" -> encoding.typeIds
            else -> throw BundleError("${files.place}: the model wants an input '${input.name}', which no text has")
        }
        Pair(input.name, values)
    }
}

/** `golden.json`: texts, and what the run's own tokenizer and model made of them. */
private class Golden(
    val texts: List<String>,
    val inputs: Map<String, List<IntArray>>,
    val logits: List<FloatArray>,
) {
    companion object {
        fun read(content: String, names: List<String>): Golden {
            val json = Json.parse(content)
            return Golden(
                json["texts"].list().map { it.text() },
                names.associateWith { name -> json["inputs"][name].list().map { it.wholes() } },
                json["outputs"]["logits"].list().map { it.numbers() },
            )
        }
    }
}

internal fun softmax(logits: FloatArray): DoubleArray {
    val highest = logits.maxOrNull()?.toDouble() ?: 0.0
    val shares = DoubleArray(logits.size) { exp(logits[it] - highest) }
    val sum = shares.sum()
    return DoubleArray(shares.size) { shares[it] / sum }
}
