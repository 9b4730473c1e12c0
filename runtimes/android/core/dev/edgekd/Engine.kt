package dev.edgekd

/** A model, opened by its runtime. A bundle has one engine, in Engine*.kt, which also defines `openEngine`. */
interface Engine : AutoCloseable {
    /** The runtime and its version, for reports. */
    val runtime: String

    /**
     * One text: its token ids and so on, by the names of the model's inputs and without the batch dimension. The answer
     * is the model's first output, row after row; throws BundleError.
     */
    fun run(inputs: Map<String, IntArray>): Output
}

/** A vector (one row), or a row for each token. */
class Output(private val values: FloatArray, val columns: Int) {
    val rows get() = values.size / columns

    fun row(number: Int): FloatArray = values.copyOfRange(number * columns, (number + 1) * columns)

    fun flat(): FloatArray = values

    /** Without what belongs to padding. */
    fun first(rows: Int) = Output(values.copyOf(rows * columns), columns)
}
