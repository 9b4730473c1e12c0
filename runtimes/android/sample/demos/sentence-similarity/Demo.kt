package dev.edgekd.sample

import android.content.Context
import dev.edgekd.EdgeEmbedder
import dev.edgekd.load

internal const val EXAMPLE = "A man plays the guitar"

internal suspend fun open(context: Context) = EdgeEmbedder.load(context)

internal fun EdgeEmbedder.answered(text: String): String = embed(text).joinToString()
