package io.github.multitower.client;

import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.StringWriter;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.tools.JavaCompiler;
import javax.tools.SimpleJavaFileObject;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The blocks of code in the guide, docs/java.md, compile. */
class GuideTest {
    private static final Pattern BLOCK = Pattern.compile("^```java\n(.*?)^```", Pattern.DOTALL | Pattern.MULTILINE);

    /** What the blocks leave out: imports, variables of the application, and {@code when} as Mockito has it. */
    private static final String BEGINNING =
            "import io.github.multitower.client.*;\n"
                    + "import java.nio.file.Path;\n"
                    + "import java.time.Duration;\n"
                    + "import java.util.*;\n"
                    + "import java.util.concurrent.*;\n"
                    + "abstract class Guide {\n"
                    + "InferenceClient client;\n"
                    + "Tensor image;\n"
                    + "interface Stubbing<T> { Stubbing<T> thenReturn(T value); Stubbing<T> thenThrow(Throwable... errors); }\n"
                    + "abstract <T> Stubbing<T> when(T call);\n";

    @Test
    void everyBlockOfTheGuideCompiles(@TempDir Path folder) throws Exception {
        StringBuilder source = new StringBuilder(BEGINNING);
        int blocks = 0;
        for (Matcher found = BLOCK.matcher(Files.readString(Vectors.ROOT.resolve("docs/java.md"))); found.find(); ) {
            source.append("void block").append(++blocks).append("() {\n").append(found.group(1)).append("}\n");
        }
        assertTrue(blocks > 0, "the guide has no blocks");
        String text = source.append("}\n").toString();
        URI name = URI.create("string:///Guide.java");
        SimpleJavaFileObject file = new SimpleJavaFileObject(name, SimpleJavaFileObject.Kind.SOURCE) {
            @Override
            public CharSequence getCharContent(boolean ignoreEncodingErrors) {
                return text;
            }
        };
        URI classes = MultitowerClient.class.getProtectionDomain().getCodeSource().getLocation().toURI();
        List<String> options = List.of("-d", folder.toString(), "-classpath", Path.of(classes).toString());
        JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
        StringWriter problems = new StringWriter();
        boolean compiled = compiler.getTask(problems, null, null, options, null, List.of(file)).call();
        assertTrue(compiled, problems.toString());
    }
}
