import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.Executors;

/** The JDK's HTTP server with a pool of threads.  HttpServerZoo PORT */
public final class HttpServerZoo {
    private static void answer(HttpExchange exchange, int status, byte[] body) throws IOException {
        exchange.sendResponseHeaders(status, body.length == 0 ? -1 : body.length);
        if (body.length > 0) {
            exchange.getResponseBody().write(body);
        }
        exchange.close();
    }

    private static void answer(HttpExchange exchange, int status, String body) throws IOException {
        answer(exchange, status, body.getBytes(StandardCharsets.UTF_8));
    }

    private static void stream(HttpExchange exchange) throws IOException, InterruptedException {
        exchange.sendResponseHeaders(200, 0); // 0: chunked
        try (var out = exchange.getResponseBody()) {
            for (int piece = 0; piece < 5; piece++) {
                out.write(("piece " + piece + "\n").getBytes(StandardCharsets.UTF_8));
                out.flush();
                Thread.sleep(1);
            }
        }
        exchange.close();
    }

    private static void serve(HttpExchange exchange) throws IOException {
        String[] parts = exchange.getRequestURI().getPath().split("/");
        byte[] body = exchange.getRequestBody().readAllBytes();
        try {
            switch (parts.length > 1 ? parts[1] : "") {
                case "items" -> answer(exchange, 200, "{\"item\":\"" + parts[2] + "\"}\n");
                case "fail" -> answer(exchange, 500, "failed\n");
                case "echo" -> answer(exchange, 200, body);
                case "sleep" -> {
                    Thread.sleep(Long.parseLong(parts[2]));
                    answer(exchange, 200, "slept\n");
                }
                case "big" -> answer(exchange, 200, "x".repeat(Integer.parseInt(parts[2])));
                case "stream" -> stream(exchange);
                default -> answer(exchange, 404, "no such page\n");
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    public static void main(String[] arguments) throws IOException {
        var address = new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0]));
        HttpServer server = HttpServer.create(address, 512);
        server.createContext("/", HttpServerZoo::serve);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.start();
        System.out.println("listening " + server.getAddress().getPort());
    }
}
