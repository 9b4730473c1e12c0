package dev.edgekd

/** What the golden texts gave on this device; see [EdgeModel.selfTest]. */
class Report(
    val texts: Int,
    val bound: Double,
    val runtime: String,
    val wrong: List<String>,
    val rows: List<Row>,
) {
    /** `difference` and `milliseconds`: null where the ids differ already. */
    class Row(
        val text: String,
        val idsEqual: Boolean,
        val difference: Double?,
        val milliseconds: Double?,
        val answer: Any,
    )

    val passed get() = wrong.isEmpty()
    val largestDifference = rows.mapNotNull { it.difference }.maxOrNull() ?: 0.0

    /** The median. */
    val milliseconds: Double? = rows.mapNotNull { it.milliseconds }.sorted().let { it.getOrNull(it.size / 2) }

    override fun toString() =
        "${if (passed) "passed" else "FAILED"}: $texts golden texts on $runtime, " +
            "largest difference $largestDifference (bound $bound), median $milliseconds ms" +
            wrong.joinToString("") { "\n$it" }
}
